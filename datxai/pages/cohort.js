// The table of cases in the report of a run: sorted, filtered, and as points over two of its columns.
"use strict";
{
  const section = document.getElementById("cases");
  const body = section.querySelector("tbody");
  const rows = [...body.rows];
  const headers = [...section.querySelectorAll("thead th")];
  const part = (selector) => section.querySelector(selector);
  const valueOf = (row, column) => row.cells[column].dataset.value;

  // Sorting: numbers as numbers, names with numbers in them in their order; what is not known comes last.
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  function sort(column) {
    const descending = headers[column].getAttribute("aria-sort") === "ascending";
    for (const header of headers) header.removeAttribute("aria-sort");
    headers[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const numeric = "numeric" in headers[column].dataset;
    rows.sort((a, b) => {
      const [left, right] = [valueOf(a, column), valueOf(b, column)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return (descending ? -1 : 1) * (numeric ? left - right : compare(left, right));
    });
    body.append(...rows);
    enter();
  }
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => sort(column)));

  // Links: the Tab key finds one of them, arrow keys go on from there, so that the table is passed in one step.
  const linksOf = () => rows.filter((row) => !row.hidden).map((row) => row.querySelector("a")).filter(Boolean);
  function enter(chosen = linksOf()[0]) {
    for (const link of body.querySelectorAll("a")) link.tabIndex = link === chosen ? 0 : -1;
  }
  body.addEventListener("focusin", (event) => { if (event.target.matches("a")) enter(event.target); });
  body.addEventListener("keydown", (event) => {
    const links = linksOf();
    const place = links.indexOf(event.target);
    const goal = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: links.length - 1 }[event.key];
    if (place < 0 || !links[goal]) return;
    event.preventDefault();
    links[goal].focus();
  });

  // Filters: a row has to pass all of them.
  const filters = section.querySelector("form");
  function filter() {
    const chosen = new FormData(filters);
    const flags = chosen.getAll("flag");
    const text = chosen.get("text").trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const has = row.dataset.flags.split(" ");
      row.hidden = !((chosen.get("set") === "" || row.dataset.set === chosen.get("set"))
        && flags.every((flag) => has.includes(flag)) && row.cells[0].textContent.toLowerCase().includes(text));
      shown += !row.hidden;
    }
    enter();
    part("[data-show=count]").textContent = `${shown} of ${rows.length} scans`;
    plot();
  }
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());

  // Points: each leads to the page of its case and says its values where the pointer is.
  const chart = part("svg");
  const axes = [part("[name=across]"), part("[name=up]")];
  const SIZE = [720, 380], EDGE = [96, 48]; // room on the left and below
  const make = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  function spell(tick) {  // relevance is often far below one: 4e−5, not 0.00004, which would run into the axis' name
    return (tick && Math.abs(tick) < 1e-3 ? tick.toExponential() : String(tick)).replaceAll("-", "−");
  }

  function ticksOf(low, high) {
    const raw = (high - low) / 5 || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
    return ticks;
  }

  function plot() {
    const [across, up] = axes.map((axis) => Number(axis.value));
    const known = rows.filter((row) => !row.hidden && valueOf(row, across) !== "" && valueOf(row, up) !== "");
    const scales = [across, up].map((column, axis) => {
      const values = known.map((row) => Number(valueOf(row, column)));
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const room = 0.04 * (high - low) || 0.5;
      const length = SIZE[axis] - EDGE[axis] - 10;
      const place = (value) => (value - low + room) / (high - low + 2 * room) * length;
      return { ticks: known.length ? ticksOf(low, high) : [], place: axis ? (v) => SIZE[1] - EDGE[1] - place(v) : (v) => EDGE[0] + place(v) };
    });
    const [x, y] = scales.map((scale) => scale.place);
    const bottom = SIZE[1] - EDGE[1];
    const parts = [make("path", { d: `M${EDGE[0]} 10V${bottom}H${SIZE[0] - 10}`, class: "axis" })];
    for (const tick of scales[0].ticks) parts.push(make("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, spell(tick)));
    for (const tick of scales[1].ticks) parts.push(make("text", { x: EDGE[0] - 8, y: y(tick) + 4, "text-anchor": "end" }, spell(tick)));
    const names = axes.map((axis) => axis.selectedOptions[0].text);
    parts.push(make("text", { x: (EDGE[0] + SIZE[0]) / 2, y: SIZE[1] - 8, "text-anchor": "middle" }, names[0]));
    parts.push(make("text", { transform: `translate(14 ${bottom / 2}) rotate(-90)`, "text-anchor": "middle" }, names[1]));
    for (const row of known) {
      const [u, v] = [x(Number(valueOf(row, across))), y(Number(valueOf(row, up)))];
      const wrong = row.dataset.flags.includes("misclassified");
      const point = make("path", { d: wrong ? `M${u} ${v - 6}l6 6l-6 6l-6 -6z` : `M${u - 4} ${v}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z`, class: row.dataset.group || "none" });
      const said = headers.map((header, column) => `${header.innerText.trim()}: ${row.cells[column].innerText}`).join("\n");
      point.append(make("title", {}, said));
      const link = row.querySelector("a");
      const mark = link ? make("a", { href: link.getAttribute("href"), tabindex: -1 }) : make("g", {});
      mark.append(point);
      mark.addEventListener("pointerenter", () => {
        part("[data-show=point]").textContent = [row.cells[0].textContent, row.dataset.group, ...[across, up].map((column, axis) => `${names[axis]} ${row.cells[column].textContent}`)].filter(Boolean).join(", ");
      });
      parts.push(mark);
    }
    chart.replaceChildren(...parts);
  }
  for (const [axis, start] of [[axes[0], "sbr"], [axes[1], "relevance"]]) {
    headers.forEach((header, column) => {
      if ("numeric" in header.dataset) axis.add(new Option(header.textContent.trim(), column, false, header.dataset.column === start));
    });
    axis.addEventListener("change", plot);
  }
  for (const hidden of section.querySelectorAll("[data-scripted]")) hidden.hidden = false;
  filter();
}
