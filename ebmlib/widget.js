// A live picture of an energy in the plane: contours, particles that move by Langevin steps, and the histogram of their
// energies beside the exact one. Plain JavaScript without a library or a request; widget.py puts it into the page.

const STYLE = `
  :host { display: block; color: inherit; }
  figure { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; margin: 0; padding: 3px; line-height: 1.4; }
  figure > div { flex: 1 1 15rem; max-width: 24rem; min-width: 0; }
  canvas { display: block; width: 100%; cursor: crosshair; border-radius: 3px; }
  svg { display: block; width: 100%; overflow: visible; font-size: 11px; fill: currentColor; }
  label, fieldset, p { display: block; margin: 0 0 0.4rem; padding: 0; border: 0; font-size: 0.875rem; }
  legend { float: left; padding: 0; margin-right: 0.75rem; }
  fieldset label { display: inline; margin-right: 0.75rem; }
  p, output { font-variant-numeric: tabular-nums; }
  input[type=range] { display: block; width: 100%; height: 1.5rem; margin: 0; accent-color: #d55e00; }
  button { font: inherit; font-size: 0.875rem; color: inherit; background: none; border: 1px solid currentColor;
    border-radius: 4px; padding: 0.2rem 0.7rem; margin: 0 0.3rem 0.3rem 0; cursor: pointer; }
  :focus-visible { outline: 2px solid #d55e00; outline-offset: 1px; }`;

// Viridis in ten bands and one colour above them, as the book's figures have it: low energy is dark.
const BANDS = "471365 463480 3b528b 2f6c8e 25848e 1e9c89 2fb47c 5ec962 9bd93c dfe318 fde725".split(" ");
const [N_CELLS, N_SUB, N_BORDER] = [96, 6, 48]; // cells along a side, points in a cell, cells of the wider frame
const [RESOLUTION, N_LEVELS] = [0.002, 40000]; // of the density of states, in nats
const [N_BINS, MEMORY] = [32, 60]; // bars of the histogram, and the number of steps that it averages over

// ---- Energies: each returns (x, y, out), which writes E, ∂E/∂x and ∂E/∂y into out; E alone where out has one place. ----

const ACTIVATIONS = { // each takes z, leaves the activation in its place and writes its slope beside it
  silu(z, slope) {
    for (let i = 0; i < z.length; i++) {
      const s = 1 / (1 + Math.exp(-z[i]));
      slope[i] = s * (1 + z[i] * (1 - s)); z[i] *= s;
    }
  },
  relu(z, slope) {
    for (let i = 0; i < z.length; i++) { slope[i] = z[i] > 0 ? 1 : 0; z[i] = Math.max(z[i], 0); }
  },
  elu(z, slope) {
    for (let i = 0; i < z.length; i++) { slope[i] = Math.exp(Math.min(z[i], 0)); z[i] = z[i] > 0 ? z[i] : Math.expm1(z[i]); }
  },
  softplus(z, slope) {
    for (let i = 0; i < z.length; i++) {
      slope[i] = 1 / (1 + Math.exp(-z[i])); z[i] = Math.max(z[i], 0) + Math.log1p(Math.exp(-Math.abs(z[i])));
    }
  },
  tanh(z, slope) {
    for (let i = 0; i < z.length; i++) { z[i] = Math.tanh(z[i]); slope[i] = 1 - z[i] * z[i]; }
  },
};

// out = matrix x + bias, four rows at a time, so that no sum waits for another: half the time of the plain loop.
function affine(matrix, x, bias, out) {
  const n = out.length, m = x.length;
  let i = 0;
  for (; i + 3 < n; i += 4) {
    let a = bias[i], b = bias[i + 1], c = bias[i + 2], d = bias[i + 3];
    for (let j = 0, k = i * m; j < m; j++, k++) {
      const v = x[j];
      a += matrix[k] * v; b += matrix[k + m] * v; c += matrix[k + 2 * m] * v; d += matrix[k + 3 * m] * v;
    }
    out[i] = a; out[i + 1] = b; out[i + 2] = c; out[i + 3] = d;
  }
  for (; i < n; i++) {
    out[i] = bias[i];
    for (let j = 0; j < m; j++) out[i] += matrix[i * m + j] * x[j];
  }
}

const ENERGIES = {
  mlp({ activation, layers }) {
    const act = ACTIVATIONS[activation], point = new Float64Array(2);
    const flat = (rows) => Float64Array.from(rows.flat()), zeros = (n) => new Float64Array(n);
    const net = layers.map(({ weight, bias }) => ({
      forth: flat(weight), back: flat(weight[0].map((_, j) => weight.map((row) => row[j]))), bias: flat(bias),
      value: zeros(bias.length), slope: zeros(bias.length), grad: zeros(weight[0].length), none: zeros(weight[0].length),
    }));
    const hidden = net.slice(0, -1), last = net[net.length - 1];
    return (x, y, out) => {
      point[0] = x; point[1] = y;
      let input = point;
      for (const { forth, bias, value, slope } of hidden) {
        affine(forth, input, bias, value);
        act(value, slope);
        input = value;
      }
      out[0] = last.bias[0];
      for (let j = 0; j < input.length; j++) out[0] += last.forth[j] * input[j];
      if (out.length === 1) return;
      let grad = last.forth;
      for (let l = hidden.length - 1; l >= 0; l--) {
        const { back, slope, grad: next, none } = hidden[l];
        for (let i = 0; i < slope.length; i++) slope[i] *= grad[i];
        affine(back, slope, none, next);
        grad = next;
      }
      out[1] = grad[0]; out[2] = grad[1];
    };
  },
  confined({ energy, std }) {
    const inner = compile(energy), precision = 1 / (std * std);
    return (x, y, out) => {
      inner(x, y, out);
      out[0] += 0.5 * precision * (x * x + y * y); out[1] += precision * x; out[2] += precision * y;
    };
  },
  gaussian({ mean, precision: [[a, b], [, c]], offset }) {
    return (x, y, out) => {
      const u = x - mean[0], v = y - mean[1], du = a * u + b * v, dv = b * u + c * v;
      out[0] = 0.5 * (u * du + v * dv) + offset; out[1] = du; out[2] = dv;
    };
  },
  mixture({ means, std, log_weights, offset }) {
    const precision = 1 / (std * std), log_p = new Float64Array(means.length);
    return (x, y, out) => {
      let top = -Infinity, sum = 0, u = 0, v = 0;
      means.forEach((m, k) => {
        log_p[k] = log_weights[k] - 0.5 * precision * ((x - m[0]) ** 2 + (y - m[1]) ** 2);
        top = Math.max(top, log_p[k]);
      });
      means.forEach((m, k) => { const w = Math.exp(log_p[k] - top); sum += w; u += w * m[0]; v += w * m[1]; });
      out[0] = offset - top - Math.log(sum); out[1] = precision * (x - u / sum); out[2] = precision * (y - v / sum);
    };
  },
};
const compile = (energy) => ENERGIES[energy.kind](energy);

// ---- What is exact: energies on a fine grid, and from them the distribution of the energy at any temperature. ----

function tabulate(energy, low, high) {
  const out = new Float64Array(1), n = N_CELLS + 3, fine = N_CELLS * N_SUB;
  const side = [0, 1].map((i) => (high[i] - low[i]) / N_CELLS);
  const at = (x, y) => { energy(x, y, out); return out[0]; };
  const node = (j, i) => at(low[0] + (i - 1) * side[0], low[1] + (j - 1) * side[1]); // one more on every side
  const nodes = Array.from({ length: n }, (_, j) => Float64Array.from({ length: n }, (_, i) => node(j, i)));
  const cubic = Array.from({ length: N_SUB }, (_, k) => { // Catmull and Rom: exact where the energy is a quadratic
    const t = (k + 0.5) / N_SUB;
    return [-t + 2 * t ** 2 - t ** 3, 2 - 5 * t ** 2 + 3 * t ** 3, t + 4 * t ** 2 - 3 * t ** 3, t ** 3 - t ** 2];
  });
  const refine = (value) => Float64Array.from({ length: fine }, (_, k) => {
    const c = Math.floor(k / N_SUB), [a, b, d, e] = cubic[k % N_SUB];
    return 0.5 * (a * value(c) + b * value(c + 1) + d * value(c + 2) + e * value(c + 3));
  });
  const rows = nodes.map((row) => refine((i) => row[i]));
  const columns = Array.from({ length: fine }, (_, i) => refine((j) => rows[j][i]));
  let lowest = Infinity;
  for (const column of columns) for (const e of column) lowest = Math.min(lowest, e);
  const states = new Float64Array(N_LEVELS); // the area at each energy
  const add = (e, area) => {
    const level = Math.max(0, Math.floor((e - lowest) / RESOLUTION));
    if (level < N_LEVELS) states[level] += area;
  };
  for (const column of columns) for (const e of column) add(e, (side[0] * side[1]) / N_SUB ** 2);
  const wide = side.map((s) => (3 * s * N_CELLS) / N_BORDER), third = N_BORDER / 3; // the frame is thrice as wide
  for (let j = 0; j < N_BORDER; j++) {
    for (let i = 0; i < N_BORDER; i++) {
      if (Math.min(i, j) >= third && Math.max(i, j) < 2 * third) continue; // the picture itself
      const [x, y] = [i, j].map((k, d) => low[d] + (k + 0.5 - third) * wide[d]);
      add(at(x, y), wide[0] * wide[1]);
    }
  }
  return { columns, fine, lowest, states };
}

// Mean energy above the lowest, the energy that one draw in a thousand exceeds, and the share of draws up to each level.
function boltzmann(states, temperature) {
  const upto = new Float64Array(N_LEVELS);
  let sum = 0, mean = 0, top = 0;
  for (let k = 0; k < N_LEVELS; k++) {
    const e = (k + 0.5) * RESOLUTION, p = states[k] * Math.exp(-e / temperature);
    sum += p; mean += p * e; upto[k] = sum;
  }
  for (let k = 0; k < N_LEVELS; k++) { upto[k] /= sum; if (upto[k] < 0.999) top = (k + 1) * RESOLUTION; }
  return { mean: mean / sum, top, upto };
}

// ---- Particles: rows of x, y, E, ∂E/∂x, ∂E/∂y in one array. ----

// log of MALA's acceptance ratio from row i of a to row j of b, for the energy E/T and the proposal
// x - η ∇E + √(2ηT) ξ. What counts of the proposal's two densities are the squared distances there and back.
function logAcceptance(a, i, b, j, eta, temperature) {
  const dx = b[j] - a[i], dy = b[j + 1] - a[i + 1];
  const there = (dx + eta * a[i + 3]) ** 2 + (dy + eta * a[i + 4]) ** 2;
  const back = (eta * b[j + 3] - dx) ** 2 + (eta * b[j + 4] - dy) ** 2;
  return (a[i + 2] - b[j + 2] + (there - back) / (4 * eta)) / temperature;
}

function makeSimulation(payload) {
  const energy = compile(payload.energy), { low, high, n_particles: n } = payload;
  const out = new Float64Array(3), proposal = new Float64Array(5), x = new Float64Array(5 * n);
  let seed = 1;
  const uniform = () => { // mulberry32: small, and the same in every browser
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const put = (row, i, u, v) => {
    energy(u, v, out);
    row[i] = u; row[i + 1] = v; row[i + 2] = out[0]; row[i + 3] = out[1]; row[i + 4] = out[2];
  };
  const sim = {
    x, n, low, high, energy, accepted: 1, lost: 0, step_size: payload.step_size, temperature: payload.temperature,
    sampler: payload.sampler, ...tabulate(energy, low, high),
    scatter() { for (let i = 0; i < 5 * n; i += 5) put(x, i, ...low.map((a, d) => a + uniform() * (high[d] - a))); },
    gather(u, v) { for (let i = 0; i < 5 * n; i += 5) put(x, i, u, v); },
    step() {
      const { step_size: eta, temperature, sampler } = sim, width = Math.sqrt(2 * eta * temperature);
      let accepted = 0;
      sim.lost = 0;
      for (let i = 0; i < 5 * n; i += 5) {
        const radius = width * Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform(); // Box and Muller
        const u = x[i] - eta * x[i + 3] + radius * Math.cos(angle), v = x[i + 1] - eta * x[i + 4] + radius * Math.sin(angle);
        put(proposal, 0, u, v);
        if (sampler === "ULA" || Math.log(uniform()) < logAcceptance(x, i, proposal, 0, eta, temperature)) {
          x.set(proposal, i);
          accepted++;
        }
        if (!Number.isFinite(x[i + 2])) sim.lost++;
      }
      sim.accepted = accepted / n;
    },
  };
  sim.scatter();
  return sim;
}

// ---- The page. ----

const HTML = (label) => `<style>${STYLE}</style>
  <figure role="group" aria-label="${label}">
    <div><canvas role="img"></canvas><svg class="scale" viewBox="0 0 300 26" role="img"
      aria-label="Colours: low energy is dark"></svg></div>
    <div><svg class="histogram" viewBox="0 0 300 158" role="img"></svg>
      <p class="readout"></p>
      <label>step size η = <output></output><input type="range" class="step_size"></label>
      <label>temperature T = <output></output><input type="range" class="temperature"></label>
      <fieldset><legend>sampler</legend></fieldset>
      <button class="run"></button><button class="once">Step</button><button class="scatter">Scatter</button><button
        class="gather">Gather</button></div>
  </figure>`;
const RANGES = { step_size: [0.001, 1], temperature: [0.1, 4] };

function mount(host) {
  const payload = JSON.parse(host.dataset.landscape), sim = makeSimulation(payload);
  const root = host.attachShadow({ mode: "open" }), { low, high } = sim;
  root.innerHTML = HTML(payload.label);
  const find = (selector) => root.querySelector(selector), canvas = find("canvas");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let running = !still, visible = false, frame = 0, age = 0, exact, average;

  // The contours, one pixel for each point of the table, and the pixels of a particle: a disc with a white rim.
  const { fine } = sim, context = canvas.getContext("2d"), image = context.createImageData(fine, fine);
  const pixels = new Uint32Array(image.data.buffer), contours = new Uint32Array(fine * fine), disc = [];
  const opaque = (hex) => 0xff000000 + parseInt(hex.slice(4) + hex.slice(2, 4) + hex.slice(0, 2), 16); // the bytes turned
  const shades = BANDS.map(opaque), aspect = (high[0] - low[0]) / (high[1] - low[1]);
  for (let j = 0; j < fine; j++) {
    for (let i = 0; i < fine; i++) {
      const band = Math.floor(((sim.columns[i][fine - 1 - j] - sim.lowest) / payload.span) * (shades.length - 1));
      contours[j * fine + i] = shades[Math.min(Math.max(band, 0), shades.length - 1)];
    }
  }
  for (let dy = -6; dy <= 6; dy++) {
    for (let dx = -6; dx <= 6; dx++) {
      const radius = Math.hypot(dx * Math.max(1, aspect), dy * Math.max(1, 1 / aspect));
      if (radius < 5) disc.push([dx, dy, opaque(radius < 3.7 ? "d55e00" : "ffffff")]);
    }
  }
  canvas.width = canvas.height = fine;
  canvas.style.aspectRatio = aspect;

  function draw() {
    const { x, n } = sim;
    pixels.set(contours);
    for (let i = 0; i < 5 * n; i += 5) {
      const u = Math.floor(((x[i] - low[0]) / (high[0] - low[0])) * fine);
      const v = Math.floor(((high[1] - x[i + 1]) / (high[1] - low[1])) * fine);
      if (!(u > -6 && u < fine + 6 && v > -6 && v < fine + 6)) continue;
      for (const [dx, dy, color] of disc) {
        const column = u + dx, row = v + dy;
        if (column >= 0 && column < fine && row >= 0 && row < fine) pixels[row * fine + column] = color;
      }
    }
    context.putImageData(image, 0, 0);
    const bin = 270 / N_BINS, tall = (share) => 125 - Math.min(120, (110 * share) / exact.tallest);
    const bars = average.bars.map((share, k) => `M${15 + k * bin} 125V${tall(share)}h${bin}V125`);
    const line = exact.bars.map((share, k) => `${k ? "L" : "M"}${15 + k * bin} ${tall(share)}h${bin}`);
    find(".bars").setAttribute("d", bars.join(""));
    find(".exact").setAttribute("d", line.join(""));
    const off = average.mean - exact.mean, sign = off < 0 ? "−" : "+";
    find(".readout").textContent =
      `Mean energy above the lowest: ${average.mean.toFixed(2)} nats, exact ${exact.mean.toFixed(2)} ` +
      `(${sign}${Math.abs(off).toFixed(2)}). Accepted: ${Math.round(100 * sim.accepted)} %.` +
      (sim.lost ? ` Lost, since the step is too large: ${sim.lost} of ${n}.` : "");
  }

  // Add the particles' energies to the running average of their histogram.
  function record() {
    const bars = new Array(N_BINS).fill(0), left = Math.max(1, sim.n - sim.lost), width = exact.range / N_BINS;
    let mean = 0;
    for (let i = 2; i < 5 * sim.n; i += 5) {
      const above = sim.x[i] - sim.lowest;
      if (!Number.isFinite(above)) continue;
      mean += above / left;
      bars[Math.min(N_BINS - 1, Math.max(0, Math.floor(above / width)))] += 1 / left;
    }
    const weight = 1 / Math.min(++age, MEMORY), blend = (was, is) => was + weight * (is - was);
    average = age === 1 ? { bars, mean }
      : { bars: bars.map((b, k) => blend(average.bars[k], b)), mean: blend(average.mean, mean) };
  }

  // After a change of the temperature: the exact histogram, its axis, and a fresh average.
  function cool() {
    exact = boltzmann(sim.states, sim.temperature);
    const digit = 10 ** Math.floor(Math.log10(exact.top)), leading = exact.top / digit;
    exact.range = digit * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((r) => r >= leading);
    const upto = (e) => exact.upto[Math.min(N_LEVELS, Math.max(1, Math.round(e / RESOLUTION))) - 1];
    exact.bars = Array.from({ length: N_BINS }, (_, k) => {
      const [a, b] = [k, k + 1].map((edge) => (edge * exact.range) / N_BINS);
      return (k === N_BINS - 1 ? 1 : upto(b)) - (k ? upto(a) : 0); // the last bar has all that is above
    });
    exact.tallest = Math.max(...exact.bars);
    const ticks = [0, 0.5, 1].map((t) => `<text x="${15 + 270 * t}" y="138" text-anchor="middle">${
      +(exact.range * t).toPrecision(3)}${t === 1 ? " +" : ""}</text>`);
    find(".histogram").innerHTML = `<path class="bars" fill="#d55e00" opacity="0.7"/><path class="exact" fill="none"
      stroke="currentColor" stroke-width="1.5"/><path d="M15 125H285" stroke="currentColor"/>${ticks.join("")}
      <text x="150" y="150" text-anchor="middle">energy above the lowest (nats)</text>
      <text x="270" y="12" text-anchor="end">line: exact</text><text x="270" y="26" text-anchor="end">bars: particles</text>`;
    restart();
  }

  function restart() { age = 0; record(); draw(); }
  function advance() { sim.step(); record(); draw(); }
  function tick() {
    frame = 0;
    if (!host.isConnected) return;
    advance();
    schedule();
  }
  function schedule() {
    find(".run").textContent = running ? "Pause" : "Run";
    find(".readout").setAttribute("aria-live", running ? "off" : "polite");
    if (running && visible && !frame) frame = requestAnimationFrame(tick);
    if (!(running && visible) && frame) { cancelAnimationFrame(frame); frame = 0; }
  }
  function gather(u, v) { sim.gather(u, v); restart(); }

  for (const [name, [from, to]] of Object.entries(RANGES)) {
    const input = find(`.${name}`), shown = input.previousElementSibling;
    const show = () => { shown.textContent = +sim[name].toPrecision(2); input.setAttribute("aria-valuetext", shown.textContent); };
    Object.assign(input, { min: 0, max: 300, value: 300 * (Math.log(sim[name] / from) / Math.log(to / from)) });
    input.setAttribute("aria-label", name === "step_size" ? "step size" : name);
    input.addEventListener("input", () => {
      sim[name] = from * (to / from) ** (input.value / 300);
      show();
      if (name === "temperature") cool(); else restart();
    });
    show();
  }
  for (const name of ["ULA", "MALA"]) {
    const input = document.createElement("input"), label = document.createElement("label");
    Object.assign(input, { type: "radio", name: "sampler", className: "sampler", checked: name === sim.sampler });
    label.append(input, ` ${name}`);
    find("fieldset").append(label);
    input.addEventListener("change", () => { sim.sampler = name; restart(); });
  }
  find(".run").addEventListener("click", () => { running = !running; schedule(); });
  find(".once").addEventListener("click", () => { running = false; schedule(); advance(); });
  find(".scatter").addEventListener("click", () => { sim.scatter(); restart(); });
  find(".gather").addEventListener("click", () => gather(...low.map((a, d) => (a + high[d]) / 2)));
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    gather(low[0] + ((event.clientX - box.left) / box.width) * (high[0] - low[0]),
      high[1] - ((event.clientY - box.top) / box.height) * (high[1] - low[1]));
  });
  canvas.setAttribute("aria-label", `Contours of the energy, low is dark, for x1 from ${low[0]} to ${high[0]} and x2 from ${
    low[1]} to ${high[1]}; ${sim.n} particles move on it.`);
  canvas.title = "Click: all particles start here";
  find(".histogram").setAttribute("aria-label", "Histogram of the particles' energies beside the exact one; in words below.");
  find(".scale").innerHTML = BANDS.map((hex, k) => `<rect x="${70 + 12 * k}" width="12" height="9" y="4" fill="#${hex}"/>`)
    .join("") + `<text x="66" y="12" text-anchor="end">0</text><text x="207" y="12">${payload.span} nats and more</text>`;

  cool();
  if (still) { // no motion: a picture of particles that have settled
    for (let k = 0; k < 50; k++) { sim.step(); record(); }
    draw();
  }
  new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; schedule(); }).observe(host);
  schedule();
  host.landscape = Object.assign(sim, { draw, advance, logAcceptance, exact: () => exact, average: () => average }); // to try out
}

for (const host of document.querySelectorAll("[data-landscape]:not([data-live])")) {
  host.dataset.live = "";
  mount(host);
}
