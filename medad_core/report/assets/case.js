"use strict";
// The page of a case: NiiVue shows its slices, map and outlines; the worklist says which case comes next.

(() => {
  const { readState, writeState, pick, address, strip, shape } = medadList;
  // Volume, its colours, and the value that the last of them stands for.
  const LAYERS = [
    ["flair", "gray", 255],
    ["map", "medad-map", 1],
    ["found", "medad-found", 255],
    ["expert", "medad-expert", 255],
  ];
  const state = readState(location.hash);
  const byId = (id) => document.getElementById(id);
  const row = worklistRows.find((one) => one.file === shownCase.file);
  const [first, last] = [shownCase.first, shownCase.last];
  let slice = shownCase.look_at;

  /** The cases before and after this one in the list that the reader comes from. */
  function linkNeighbours() {
    byId("back").href = `../index.html#${writeState(state)}`;
    const cases = pick(worklistRows, state).filter((one) => one.file !== undefined);
    const at = cases.indexOf(row);
    byId("place").textContent = at < 0 ? "not in this list" : `${at + 1} of ${cases.length}`;
    for (const [id, neighbour] of [["before", cases[at - 1]], ["after", at < 0 ? cases[0] : cases[at + 1]]]) {
      if (neighbour) byId(id).href = address(neighbour, "", state);
      else byId(id).removeAttribute("href");
    }
  }

  /** The strip of the slices, with a mark at the one that is shown; a click goes to another. */
  function drawStrip() {
    if (!row) return null;
    const svg = strip(row);
    const mark = shape("rect", { class: "mark", y: 0, width: 1, height: 24 });
    svg.append(mark);
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      goTo(first + Math.floor(((event.clientX - box.left) / box.width) * (last - first + 1)));
    });
    byId("strip").append(svg);
    return mark;
  }

  function showSlice(number) {
    slice = number;
    byId("number").textContent = String(number);
    byId("slice").value = String(number);
    mark?.setAttribute("x", String(number - first));
  }

  function goTo(number) {
    const target = Math.min(last, Math.max(first, number));
    if (viewer && target !== slice) viewer.moveCrosshairInVox(0, 0, target - slice);
    showSlice(target);
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select, textarea")) return;
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
    if (event.key in steps) goTo(slice + steps[event.key]);
    else if (event.key === "Home") goTo(shownCase.look_at);
    else if (event.key === "n") byId("after").click();
    else if (event.key === "p") byId("before").click();
    else return;
    event.preventDefault();
    event.stopPropagation(); // NiiVue has keys of its own
  }

  /** How opaque each layer shall be, the slices first. */
  function opacities() {
    const scale = Number(byId("opacity").value) / 100;
    byId("scale").style.opacity = String(scale);
    const shown = [byId("map").checked ? scale : 0, byId("found").checked ? 1 : 0];
    return [1, ...shown, ...(byId("expert") ? [byId("expert").checked ? 1 : 0] : [])];
  }

  function showLayers() {
    opacities().forEach((opacity, layer) => {
      if (viewer && viewer.volumes[layer].opacity !== opacity) viewer.setOpacity(layer, opacity);
    });
  }

  function planes() {
    const { MULTIPLANAR, AXIAL, CORONAL, SAGITTAL } = niivue.SLICE_TYPE;
    return { three: MULTIPLANAR, axial: AXIAL, coronal: CORONAL, sagittal: SAGITTAL }[byId("planes").value];
  }

  async function open() {
    const made = new niivue.Niivue({
      isRadiologicalConvention: true, // the patient's left is on the right
      backColor: [0, 0, 0, 1],
      fontColor: [0.85, 0.9, 0.95, 1],
      crosshairColor: [0.2, 0.75, 1, 0.6],
      sliceType: planes(),
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
      dragAndDropEnabled: false,
      logLevel: "error",
    });
    await made.attachToCanvas(byId("viewer"), false);
    for (const [name, table] of Object.entries(shownCase.colours)) made.addColormap(name, table);
    const opaque = opacities();
    const layers = LAYERS.filter(([name]) => shownCase.volumes[name]).map(([name, colormap, cal_max], at) =>
      niivue.NVImage.loadFromBase64({
        base64: shownCase.volumes[name], name: `${name}.nii.gz`, colormap, cal_min: 0, cal_max, opacity: opaque[at],
      }));
    const loaded = await Promise.all(layers);
    made.volumes = loaded.slice(0, -1);
    made.addVolume(loaded.at(-1)); // only now all textures are made, once
    made.scene.crosshairPos = made.vox2frac(shownCase.volumes.peak);
    made.onLocationChange = (place) => showSlice(first + Math.round(place.vox[2]));
    made.drawScene();
    return made;
  }

  let viewer = null;
  const mark = drawStrip();
  linkNeighbours();
  showSlice(slice);
  addEventListener("keydown", onKey, true);
  addEventListener("hashchange", () => location.reload());
  byId("slice").addEventListener("input", (event) => goTo(Number(event.target.value)));
  for (const box of document.querySelectorAll("#layers input")) box.addEventListener("input", showLayers);
  byId("planes").addEventListener("input", () => viewer?.setSliceType(planes()));
  open().then((made) => {
    viewer = made;
    document.body.dataset.viewer = "ready";
  }, (error) => {
    document.body.dataset.viewer = "failed";
    byId("failed").hidden = false;
    byId("why").textContent = String(error?.message ?? error);
  });
})();
