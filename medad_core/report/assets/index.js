"use strict";
// The worklist: a table of `worklistRows` that is sorted, searched and filtered in the page, its state in the address.

(() => {
  const { readState, writeState, pick, address, strip, fixed } = medadList;
  const labelled = worklistRows.some((row) => row.expert_ml !== undefined);
  // `extra` columns are left out on small screens. Without `text`, `fill` makes the cell.
  const COLUMNS = [
    { key: "place", title: "Place", number: true, text: (row) => String(row.place) },
    { key: "case", title: "Case", fill: fillCase },
    { key: "finding", title: "Finding of", text: (row) => row.finding },
    { key: "slices", title: "Slices", fill: fillStrip, unsorted: true },
    { key: "doubts", title: "In doubt", extra: true, text: (row) => row.doubts || "–" },
    { key: "volume_ml", title: "Volume, ml", number: true, text: (row) => atLeast(row, fixed(row.volume_ml, 2)) },
    { key: "longest_mm", title: "Longest, mm", number: true, extra: true, text: longest },
    { key: "side", title: "Where", extra: true, text: where },
    { key: "score", title: "Map score", number: true, text: (row) => fixed(row.score, 3) },
    { key: "p_yes", title: "p(yes)", number: true, extra: true, text: (row) => fixed(row.p_yes, 3) },
    { key: "yes", title: "Yes", number: true, extra: true, text: yes },
    { key: "expert_ml", title: "Expert, ml", number: true, extra: true, text: (row) => fixed(row.expert_ml, 2) },
  ].filter((column) => column.key !== "expert_ml" || labelled);
  const form = document.getElementById("filters");
  const body = document.getElementById("rows");
  const count = document.getElementById("count");
  const heads = [];
  const undrawn = new WeakMap();
  const sight = new IntersectionObserver(drawStrips, { root: document.querySelector(".worklist"), rootMargin: "600px" });
  let state = readState(location.hash);

  function atLeast(row, text) {
    return row.at_least && text !== "–" ? `≥ ${text}` : text;
  }

  function longest(row) {
    return atLeast(row, fixed(row.longest_mm, 0));
  }

  function where(row) {
    return row.regions === undefined ? (row.side ?? "–") : `${row.side}: ${row.regions}`;
  }

  function yes(row) {
    return row.slices ? `${row.yes} of ${row.slices}` : "–";
  }

  function fillCase(cell, row) {
    const name = document.createElement(row.file === undefined ? "span" : "a");
    name.className = "name";
    name.textContent = row.case;
    cell.append(name);
    if (row.phantom) cell.append(note("phantom, no patient", "tag phantom"));
    if (row.patient !== undefined && row.patient !== row.case) cell.append(note(row.patient, "soft"));
  }

  /** A strip is drawn when its row is nearly in sight: a thousand of them would take a quarter of a gigabyte. */
  function fillStrip(cell, row) {
    if (!row.strip) {
      cell.textContent = "–";
      return;
    }
    undrawn.set(cell, row);
    sight.observe(cell);
  }

  function drawStrips(entries) {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      target.append(strip(undrawn.get(target)));
      sight.unobserve(target);
    }
  }

  function note(text, name) {
    const element = document.createElement("span");
    element.className = name;
    element.textContent = text;
    return element;
  }

  function makeHead() {
    const line = document.createElement("tr");
    for (const column of COLUMNS) {
      const head = document.createElement("th");
      head.scope = "col";
      head.className = classOf(column);
      line.append(head);
      if (column.unsorted) {
        head.textContent = column.title;
        continue;
      }
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.title;
      button.addEventListener("click", () => sortBy(column));
      head.append(button);
      heads.push([column, head]);
    }
    document.getElementById("heads").append(line);
  }

  function classOf(column) {
    return [column.number ? "num" : "", column.extra ? "extra" : "", column.key].join(" ").trim();
  }

  function makeRow(row) {
    const line = document.createElement("tr");
    for (const column of COLUMNS) {
      const cell = document.createElement(column.key === "case" ? "th" : "td");
      if (column.key === "case") cell.scope = "row";
      cell.className = classOf(column);
      if (column.fill) column.fill(cell, row);
      else cell.textContent = column.text(row);
      line.append(cell);
    }
    return line;
  }

  /** Numbers start with the highest, texts and places with the first; a second click turns the order. */
  function sortBy(column) {
    const same = (state.sort || "place") === column.key;
    state.down = same ? !state.down : Boolean(column.number) && column.key !== "place";
    state.sort = column.key;
    show();
  }

  function show() {
    const picked = pick(worklistRows, state);
    body.replaceChildren(...picked.map((row) => lines.get(row)));
    for (const row of picked) {
      if (row.file !== undefined) lines.get(row).querySelector("a").href = address(row, "cases/", state);
    }
    for (const [column, head] of heads) {
      const sorted = (state.sort || "place") === column.key;
      head.ariaSort = sorted ? (state.down ? "descending" : "ascending") : "none";
    }
    count.textContent = `${picked.length} of ${worklistRows.length} cases`;
    history.replaceState(null, "", `#${writeState(state)}`);
  }

  function fillForm() {
    for (const field of form.elements) {
      if (field.type === "checkbox") field.checked = state[field.name];
      else if (field.name) field.value = state[field.name];
    }
  }

  function readForm() {
    for (const field of form.elements) {
      if (field.type === "checkbox") state[field.name] = field.checked;
      else if (field.name) state[field.name] = field.value;
    }
    show();
  }

  makeHead();
  const lines = new Map(worklistRows.map((row) => [row, makeRow(row)]));
  form.addEventListener("input", readForm);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    state = readState("");
    fillForm();
    show();
  });
  addEventListener("hashchange", () => {
    state = readState(location.hash);
    fillForm();
    show();
  });
  fillForm();
  show();
})();
