"use strict";
// The worklist: a table of `worklistRows` that is sorted, searched and filtered in the page, its state in the address.

(() => {
  const { readState, writeState, pick, address, strip, fixed } = medadList;
  const labelled = worklistRows.some((row) => row.expert_ml !== undefined);
  // `extra` columns are left out on small screens, `place` on the smallest. Without `text`, `fill` makes the cell.
  const COLUMNS = [
    { key: "place", width: "70px", title: "Place", number: true, text: (row) => String(row.place) },
    { key: "case", width: "minmax(var(--name), 1.4fr)", title: "Case", fill: fillCase },
    { key: "finding", width: "minmax(106px, 1fr)", title: "Finding of", text: (row) => row.finding },
    { key: "slices", width: "calc(var(--drawn) + 14px)", title: "Slices", fill: fillStrip, unsorted: true },
    { key: "doubts", width: "minmax(160px, 1.4fr)", title: "In doubt", extra: true, text: doubts },
    { key: "volume_ml", width: "98px", title: "Volume, ml", number: true, text: volume },
    { key: "longest_mm", width: "110px", title: "Longest, mm", number: true, extra: true, text: longest },
    { key: "side", width: "minmax(150px, 1.4fr)", title: "Where", extra: true, text: where },
    { key: "score", width: "92px", title: "Map score", number: true, text: (row) => fixed(row.score, 3) },
    { key: "p_yes", width: "66px", title: "p(yes)", number: true, extra: true, text: (row) => fixed(row.p_yes, 3) },
    { key: "yes", width: "80px", title: "Yes", number: true, extra: true, text: yes },
    { key: "expert_ml", width: "100px", title: "Expert, ml", number: true, extra: true, text: expert },
  ].filter((column) => column.key !== "expert_ml" || labelled);
  const form = document.getElementById("filters");
  const body = document.getElementById("rows");
  const count = document.getElementById("count");
  const heads = [];
  const list = document.querySelector(".worklist");
  const undrawn = new WeakMap();
  const sight = new IntersectionObserver(drawStrips, { root: list, rootMargin: "600px" });
  let state = readState(location.hash);

  function atLeast(row, text) {
    return row.at_least && text !== "–" ? `≥ ${text}` : text;
  }

  function doubts(row) {
    return row.doubts || "–";
  }

  function volume(row) {
    return atLeast(row, fixed(row.volume_ml, 2));
  }

  function expert(row) {
    return fixed(row.expert_ml, 2);
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

  /** Widths do not hang on what cells hold, so a row out of sight is not laid out: a thousand would take 75 MB. */
  function setWidths() {
    const widths = (columns) => columns.map((column) => column.width).join(" ");
    const narrow = COLUMNS.filter((column) => !column.extra);
    list.style.setProperty("--columns", widths(COLUMNS));
    list.style.setProperty("--fewer", widths(narrow));
    list.style.setProperty("--fewest", widths(narrow.filter((column) => column.key !== "place")));
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

  setWidths();
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
