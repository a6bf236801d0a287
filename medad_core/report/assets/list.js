"use strict";
// What the worklist and the pages of its cases share: the state in the address, the rows that it picks, their strips.
// All text goes into the page as text: a name is never markup.

const medadList = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WORDS = ["q", "finding", "min", "max", "sort"];
  const MARKS = ["disagree", "doubt", "down"];

  /** The state that an address keeps after its #; what it does not have is "" or false. */
  function readState(hash) {
    const words = new URLSearchParams(hash.replace(/^#/, ""));
    const state = Object.fromEntries(WORDS.map((name) => [name, words.get(name) ?? ""]));
    for (const name of MARKS) state[name] = words.get(name) === "1";
    return state;
  }

  /** The inverse of readState, without #. */
  function writeState(state) {
    const words = new URLSearchParams();
    for (const name of WORDS) if (state[name] !== "") words.set(name, state[name]);
    for (const name of MARKS) if (state[name]) words.set(name, "1");
    return words.toString();
  }

  /** The rows that a state asks for, in its order. */
  function pick(rows, state) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const low = state.min === "" ? -Infinity : Number(state.min);
    const high = state.max === "" ? Infinity : Number(state.max);
    const limited = state.min !== "" || state.max !== "";
    const picked = rows.filter((row) => {
      const text = [row.case, row.patient, row.finding, row.side, row.regions, row.doubts].join(" ").toLowerCase();
      if (!words.every((word) => text.includes(word))) return false;
      if (state.finding && row.finding !== state.finding) return false;
      if (state.disagree && !row.disagree) return false;
      if (state.doubt && !row.doubts) return false;
      return !limited || (row.score !== undefined && row.score >= low && row.score <= high);
    });
    return order(picked, state.sort || "place", state.down);
  }

  /** Rows by a value: what is not known comes last, equals stay in the order of the worklist. */
  function order(rows, key, down) {
    const sign = down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [one, other] = [a[key] ?? null, b[key] ?? null];
      if (one === null || other === null) return (one === null) - (other === null) || a.place - b.place;
      const text = typeof one === "string";
      return sign * (text ? one.localeCompare(other, "en", { numeric: true }) : one - other) || a.place - b.place;
    });
  }

  /** The address of a row's page, seen from the folder `base` ("" or "cases/"), with the state of the list. */
  function address(row, base, state) {
    return `${base}${encodeURIComponent(row.file)}.html#${writeState(state)}`;
  }

  function shape(name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  /** The slices of a case: scores of the map as bars, p(yes) as a line, below them what an expert marked. */
  function strip(row) {
    const { first, score, p_yes, label } = row.strip;
    const last = first + score.length - 1;
    const svg = shape("svg", {
      class: "strip", viewBox: `0 0 ${score.length} 24`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Slices ${first} to ${last}: ${row.yes} answered yes, highest map score ${fixed(row.score, 3)}`,
    });
    const drawn = (values, draw) => values.map((value, at) => (value ? draw(value, at) : "")).join("");
    const bars = drawn(score, (value, at) => `M${at} 20v${(-20 * value).toFixed(1)}h.9V20z`);
    const ticks = drawn(label, (_, at) => `M${at} 21.5h1V24h-1z`);
    const points = p_yes.map((value, at) => (value === null ? "" : `L${at + 0.5} ${(20 - 20 * value).toFixed(1)}`));
    svg.append(shape("path", { class: "bars", d: bars }), shape("path", { class: "expert", d: ticks }));
    svg.append(shape("path", { class: "line", d: points.join("").replace("L", "M") }));
    return svg;
  }

  /** A number with so many digits; a dash for none. */
  function fixed(value, digits) {
    return value === undefined || value === null ? "–" : value.toFixed(digits);
  }

  return { readState, writeState, pick, address, strip, shape, fixed };
})();
