"use strict";
// Tables: a click on a title sorts by it, a second one the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const key = row => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
      return text.trim() === "" || isNaN(text) ? text : Number(text);
    };
    const down = head.getAttribute("aria-sort") === "descending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const body = table.tBodies[0];
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;  // what is missing comes last
      const upwards = typeof x === "number" ? x - y : x.localeCompare(y, undefined, {numeric: true});
      return down ? upwards : -upwards;
    };
    body.append(...[...body.rows].sort(order));
  }));
}
// Figures: what a dot is, beside the pointer or the finger.
const tip = document.getElementById("tip");
const show = event => {
  const dot = event.target.closest?.("[data-tip]");
  tip.hidden = !dot;
  if (!dot) return;
  tip.textContent = dot.dataset.tip;
  const left = Math.min(event.pageX + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${event.pageY + 14}px`;
};
document.addEventListener("pointerover", show);
document.addEventListener("pointerdown", show);
