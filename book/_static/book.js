// A box that is wider than the page scrolls; then the keyboard has to reach it as well. The theme does this for code.
const reachable = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
addEventListener("DOMContentLoaded", () => {
  const boxes = "div.math, figure, div.cell_output, .pst-scrollable-table-container";
  for (const box of document.querySelectorAll(boxes)) reachable.observe(box);
});
