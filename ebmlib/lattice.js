// A live Ising lattice: spins drawn by heat-bath or cluster sweeps, and their running means beside the exact ones.
// Plain JavaScript without a library or a request; lattice_widget.py puts it into the page.

const STYLE = `
  :host { display: block; color: inherit; }
  figure { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; margin: 0; padding: 3px; line-height: 1.4;
    font-size: 0.875rem; font-variant-numeric: tabular-nums; }
  figure > div { flex: 1 1 15rem; max-width: 24rem; min-width: 0; }
  .curves { display: flex; flex-wrap: wrap; gap: 0 1rem; flex-basis: 100%; max-width: 49.5rem; }
  canvas { display: block; box-sizing: border-box; width: 100%; aspect-ratio: 1; image-rendering: pixelated;
    border: 1px solid currentColor; border-radius: 3px; }
  svg { display: block; flex: 1 1 13rem; max-width: 20rem; min-width: 0; font-size: 11px; fill: currentColor; }
  table { border-collapse: collapse; width: 100%; margin: 0 0 0.4rem; font-size: inherit; }
  th, td { padding: 0.1rem 0.3rem; text-align: right; font-weight: normal; border-bottom: 1px solid; }
  th:first-child { text-align: left; padding-left: 0; }
  label, fieldset, p { display: flow-root; margin: 0 0 0.4rem; padding: 0; border: 0; }
  fieldset :is(legend, label) { display: inline; float: left; padding: 0; margin-right: 0.75rem; }
  input[type=range] { display: block; width: 100%; height: 1.5rem; margin: 0; accent-color: #d55e00; }
  button { font: inherit; color: inherit; background: none; border: 1px solid currentColor; border-radius: 4px;
    padding: 0.2rem 0.7rem; margin: 0 0.3rem 0.3rem 0; cursor: pointer; }
  :focus-visible { outline: 2px solid #d55e00; outline-offset: 1px; }`;
const [UP, DOWN] = [0xffb27200, 0xffc8e6f5]; // blue and sand, their bytes turned
const [LEFT_OUT, N_BATCHES, LEAP] = [100, 32, 1000]; // sweeps after a change, batches of a mean, sweeps of a button
const [PACE, WAIT] = [20, 170]; // sweeps between two pictures, and ms: six pictures a second, so that nothing flashes
const QUANTITIES = { // name: as it is written, lowest and highest value of its picture
  energy: ["energy a spin", -2, 0], abs_magnetisation: ["|m|", 0, 1], squared_magnetisation: ["m²", 0, 1],
};
const NAMES = Object.keys(QUANTITIES);

// ---- Spins: sweeps that leave p(s) ∝ exp(-E(s)/T) as it is, E(s) = -Σ s_i s_j over neighbours on a torus. ----

function makeSimulation({ side: n, temperatures, start, move, seed }) {
  const size = n * n, spins = new Int8Array(size), seen = new Uint8Array(size);
  const near = Array.from({ length: size }, (_, k) => { // the four neighbours of each spin: right, below, left, above
    const i = k % n, row = k - i;
    return [row + ((i + 1) % n), (k + n) % size, row + ((i + n - 1) % n), (k + size - n) % size];
  });
  const uniform = () => { // mulberry32: small, and the same in every browser
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const sweeps = {
    "heat bath"(temperature) { // each spin in turn from its conditional
      const up = [-4, -2, 0, 2, 4].map((field) => 1 / (1 + Math.exp((-2 * field) / temperature)));
      for (let k = 0; k < size; k++) {
        const [a, b, c, d] = near[k], field = spins[a] + spins[b] + spins[c] + spins[d];
        spins[k] = uniform() < up[field / 2 + 2] ? 1 : -1;
      }
    },
    clusters(temperature) { // Swendsen and Wang: equal neighbours are tied by chance, and what is tied turns as one
      const tie = -Math.expm1(-2 / temperature), old = spins.slice();
      seen.fill(0);
      for (let k = 0; k < size; k++) {
        if (seen[k]) continue;
        const spin = uniform() < 0.5 ? 1 : -1, stack = [k];
        seen[k] = 1;
        while (stack.length) {
          const i = stack.pop();
          spins[i] = spin;
          for (const j of near[i]) if (!seen[j] && old[j] === old[i] && uniform() < tie) { seen[j] = 1; stack.push(j); }
        }
      }
    },
  };
  const sim = {
    side: n, spins, uniform, index: start, move, temperature: () => temperatures[sim.index],
    sweep() { sweeps[sim.move](sim.temperature()); },
    align() { spins.fill(1); },
    scatter() { for (let k = 0; k < size; k++) spins[k] = uniform() < 0.5 ? 1 : -1; },
    measure() { // in the order of NAMES
      let pairs = 0, sum = 0;
      for (let k = 0; k < size; k++) { sum += spins[k]; pairs += spins[k] * (spins[near[k][0]] + spins[near[k][1]]); }
      return [-pairs / size, Math.abs(sum) / size, (sum / size) ** 2];
    },
  };
  sim.scatter();
  return sim;
}

// Running means with their standard errors, from batches of equal length: two become one whenever there are 32.
function makeAverage() {
  let batches = [], length = 1, open = 0, count = 0;
  const total = (rows, i) => rows.reduce((sum, row) => sum + row[i], 0);
  return {
    add(values) {
      if (open === 0) batches.push(values.map(() => 0));
      values.forEach((value, i) => { batches[batches.length - 1][i] += value; });
      count++; open = (open + 1) % length;
      if (open || batches.length < N_BATCHES) return;
      batches = batches.filter((_, k) => k % 2 === 0).map((row, k) => row.map((sum, i) => sum + batches[2 * k + 1][i]));
      length *= 2;
    },
    count: () => count,
    read(i) { // the error only once a batch has 32 sweeps
      const full = open ? batches.slice(0, -1) : batches, mean = total(full, i) / full.length;
      const squares = full.reduce((sum, row) => sum + (row[i] - mean) ** 2, 0) / (full.length - 1);
      return { mean: total(batches, i) / count, error: length < 32 ? NaN : Math.sqrt(squares / full.length) / length };
    },
  };
}

// ---- The page. ----

const HTML = (label, side, columns) => `<style>${STYLE}</style>
  <figure role="group" aria-label="${label}">
    <div><canvas role="img" width="${side}" height="${side}" aria-label="${side} by ${side} spins, blue where up; in words in
      the table"></canvas><p>Blue: up. Sand: down. m is the mean spin.</p></div>
    <div><div class="readout"><table><thead><tr>${["mean", "of the sweeps", ...columns].map((name) =>
      `<th scope="col">${name}</th>`).join("")}</tr></thead><tbody>${NAMES.map((name) => `<tr><th scope="row">${
      QUANTITIES[name][0]}</th><td></td>${"<td></td>".repeat(columns.length)}</tr>`).join("")}</tbody></table><p></p></div>
      <label>temperature T = <output></output><input type="range" class="temperature" aria-label="temperature"></label>
      <fieldset><legend>sweep</legend>${["heat bath", "clusters"].map((name) => `<label><input type="radio" name="move"
        class="move" value="${name}"> ${name}</label>`).join("")}</fieldset>
      <button class="run"></button><button class="once">Step</button><button class="leap">${LEAP} sweeps</button><button
        class="align">All up</button><button class="scatter">Random</button></div>
    <div class="curves"></div>
  </figure>`;
const written = (x) => (Number.isFinite(x) ? x.toFixed(3).replace("-", "−") : "–");

// A picture of a mean against the temperature, with its exact lines; returns what draws the dots.
function makeCurve(box, [title, low, high], ts, ...tables) {
  const last = ts[ts.length - 1], across = (t) => 30 + (200 * (t - ts[0])) / (last - ts[0]);
  const down = (value) => 88 - (74 * (value - low)) / (high - low);
  const text = (x, y, anchor, what) => `<text x="${x}" y="${y}" text-anchor="${anchor}">${what}</text>`;
  const line = (values, k) => `<polyline points="${values.map((v, i) => `${across(ts[i])},${down(v)}`).join(" ")}"
    stroke-width="1.5" stroke-dasharray="${["none", "4 3"][k]}"/>`; // the second table, of the infinite lattice, in dashes
  box.insertAdjacentHTML("beforeend", `<svg viewBox="0 0 236 106" role="img" aria-label="${title} against the temperature:
    lines are exact, dots are means of the sweeps; in words in the table."><g fill="none" stroke="currentColor">
    <path d="M30 14V88H230"/>${tables.map((values, k) => (values ? line(values, k) : "")).join("")}</g>
    ${text(130, 9, "middle", title)}${text(130, 102, "middle", "temperature T")}
    ${text(26, 88, "end", low < 0 ? `−${-low}` : low)}${text(26, 20, "end", high)}
    ${text(30, 102, "start", +ts[0].toFixed(2))}${text(230, 102, "end", +last.toFixed(2))}
    <g fill="#d55e00" stroke="#d55e00"></g></svg>`);
  const dot = ([k, { mean, error }], now) => `<circle cx="${across(ts[k])}" cy="${down(mean)}" r="${+k === now ? 4 : 2}"/>
    <path d="M${across(ts[k])} ${down(mean + 2 * (error || 0))}V${down(mean - 2 * (error || 0))}"/>`;
  const marks = box.lastElementChild.lastElementChild;
  return (dots, now) => { marks.innerHTML = Object.entries(dots).map((entry) => dot(entry, now)).join(""); };
}

function mount(host) {
  const payload = JSON.parse(host.dataset.lattice), { exact, infinite, temperatures } = payload;
  const sim = makeSimulation(payload), tables = Object.keys(infinite).length ? { exact, infinite } : { exact };
  const root = host.attachShadow({ mode: "open" }), find = (selector) => root.querySelector(selector);
  root.innerHTML = HTML(payload.label, sim.side, Object.keys(tables));
  const context = find("canvas").getContext("2d"), image = context.createImageData(sim.side, sim.side);
  const pixels = new Uint32Array(image.data.buffer), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const curves = NAMES.map((name) =>
    makeCurve(find(".curves"), QUANTITIES[name], temperatures, exact[name], infinite[name]));
  const dots = NAMES.map(() => ({})); // the last mean at each temperature
  let running = !still, visible = false, timer = 0, average, ahead;

  function draw() {
    sim.spins.forEach((spin, k) => { pixels[k] = spin > 0 ? UP : DOWN; });
    context.putImageData(image, 0, 0);
    NAMES.forEach((name, i) => {
      const found = average.read(i), [, ...cells] = find("tbody").rows[i].cells;
      if (average.count()) dots[i][sim.index] = found;
      curves[i](dots[i], sim.index);
      const texts = [written(found.mean) + (found.error >= 0 ? ` ± ${written(found.error)}` : "")];
      for (const table of Object.values(tables)) texts.push(written(table[name]?.[sim.index]));
      cells.forEach((cell, k) => { cell.textContent = texts[k]; });
    });
    find(".readout p").textContent = ahead ? `${ahead} sweeps to go before the means start.`
      : `${average.count()} sweeps, after ${LEFT_OUT} that are left out; ± one standard error.`;
  }

  function advance(n) {
    for (; n > 0; n--) { sim.sweep(); if (ahead) ahead--; else average.add(sim.measure()); }
    draw();
  }
  function restart() { average = makeAverage(); ahead = LEFT_OUT; draw(); }
  function tick() { timer = 0; if (host.isConnected) { advance(PACE); schedule(); } }
  function schedule() {
    find(".run").textContent = running ? "Pause" : "Run";
    find(".readout").setAttribute("aria-live", running ? "off" : "polite");
    if (running && visible && !timer) timer = setTimeout(tick, WAIT);
    if (!(running && visible)) { clearTimeout(timer); timer = 0; }
  }

  const input = find(".temperature"), shown = find("output");
  function show() { shown.textContent = +sim.temperature().toPrecision(4); input.ariaValueText = shown.textContent; }
  Object.assign(input, { min: 0, max: temperatures.length - 1, value: sim.index });
  input.addEventListener("input", () => { sim.index = +input.value; show(); restart(); });
  for (const radio of root.querySelectorAll(".move")) {
    radio.checked = radio.value === sim.move;
    radio.addEventListener("change", () => { sim.move = radio.value; restart(); });
  }
  const press = (name, action) => find(`.${name}`).addEventListener("click", action);
  press("run", () => { running = !running; schedule(); });
  for (const [name, n] of [["once", 1], ["leap", LEAP]]) press(name, () => { running = false; schedule(); advance(n); });
  for (const name of ["align", "scatter"]) press(name, () => { sim[name](); restart(); });

  show();
  restart();
  if (still) advance(LEFT_OUT + LEAP); // no motion: a picture and means that stand
  new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; schedule(); }).observe(host);
  schedule();
  host.lattice = Object.assign(sim, { advance, makeAverage, average: () => average }); // to try out
}

for (const host of document.querySelectorAll("[data-lattice]:not([data-live])")) {
  host.dataset.live = "";
  mount(host);
}
