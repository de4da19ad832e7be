"use strict";
// Sorting, filtering, and an address that keeps both. Without this script the pages show everything, unsorted.

const tables = Array.from(document.querySelectorAll("table.sortable"));
const form = document.querySelector("form.filters");

function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
  const number = text === "" ? NaN : Number(text);
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  const numbers = (typeof b === "number") - (typeof a === "number");  // numbers before words and blanks
  return numbers || (typeof a === "number" ? a - b : a.localeCompare(b));
}

function sort(table, column, order) {
  const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
  for (const head of heads) head.removeAttribute("aria-sort");
  if (order !== "none") heads[column].setAttribute("aria-sort", order);
  const sign = order === "descending" ? -1 : 1;
  const keyed = table.original.map((row, index) => [order === "none" ? index : key(row, column), index, row]);
  keyed.sort((a, b) => {
    const known = (typeof b[0] === "number") - (typeof a[0] === "number");
    return known || sign * compare(a[0], b[0]) || a[1] - b[1];
  });
  table.tBodies[0].replaceChildren(...keyed.map((entry) => entry[2]));
}

function sorted() {
  const found = [];
  for (const table of tables) {
    const head = table.querySelector("[aria-sort]");
    if (table.id && head) found.push([table.id, head.cellIndex, head.getAttribute("aria-sort")].join(":"));
  }
  return found.join(",");
}

for (const table of tables) {
  table.original = Array.from(table.tBodies[0].rows);
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.parentElement;
    const next = { none: "ascending", ascending: "descending", descending: "none" };
    sort(table, head.cellIndex, next[head.getAttribute("aria-sort") || "none"]);
    remember();
  });
}

function filter() {
  const wanted = { task: form.elements.task.value, data: form.elements.data.value, protocol: form.elements.protocol.value };
  const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const section of document.querySelectorAll("section.boards")) {
    const fits = Object.keys(wanted).every((name) => !wanted[name] || section.dataset[name] === wanted[name]);
    let rows = 0;
    for (const row of fits ? section.querySelector("table").original : []) {
      row.text = row.text || [0, -2, -1].map((at) => Array.from(row.cells).at(at).textContent).join(" ").toLowerCase();
      const control = row.classList.contains("control");
      row.hidden = control ? !form.elements.controls.checked : !words.every((word) => row.text.includes(word));
      if (control && words.length && words.every((word) => row.text.includes(word))) rows += !row.hidden;
      if (!control) rows += !row.hidden;
    }
    section.hidden = !fits || rows === 0;
    shown += rows;
  }
  form.querySelector("output").textContent = shown + (shown === 1 ? " row" : " rows");
}

function remember() {
  if (!form) return;
  const view = new URLSearchParams();
  for (const name of ["q", "task", "data", "protocol"]) if (form.elements[name].value) view.set(name, form.elements[name].value);
  if (!form.elements.controls.checked) view.set("controls", "no");
  if (sorted()) view.set("sort", sorted());
  history.replaceState(null, "", "#" + view.toString());
}

function recall() {
  const view = new URLSearchParams(location.hash.slice(1));
  for (const name of ["q", "task", "data", "protocol"]) form.elements[name].value = view.get(name) || "";
  form.elements.controls.checked = view.get("controls") !== "no";
  for (const part of (view.get("sort") || "").split(",")) {
    const [id, column, order] = part.split(":");
    const table = tables.find((one) => one.id === id);
    if (table && column < table.tHead.rows[1].cells.length && ["ascending", "descending"].includes(order)) sort(table, Number(column), order);
  }
  filter();
}

if (form) {
  form.addEventListener("input", () => { filter(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { for (const table of tables) sort(table, 0, "none"); filter(); remember(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  recall();
  window.addEventListener("hashchange", () => { if (!document.getElementById(location.hash.slice(1))) recall(); });
}

function reveal() {
  const target = document.getElementById(location.hash.slice(1));
  const details = target && target.closest("details");
  if (!details) return;
  details.open = true;
  details.scrollIntoView();
  target.focus({ preventScroll: true });
}
window.addEventListener("hashchange", reveal);
reveal();
