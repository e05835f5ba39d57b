// A box that is wider than the page scrolls; then the keyboard has to reach it as well, and a figure says so. The theme
// does this for code.
const reachable = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const isWide = target.scrollWidth > target.clientWidth;
    if (isWide) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
    target.classList.toggle("wide", isWide);
  }
});
addEventListener("DOMContentLoaded", () => {
  const boxes = "div.math, figure, div.cell_output, .pst-scrollable-table-container";
  for (const box of document.querySelectorAll(boxes)) reachable.observe(box);
});
