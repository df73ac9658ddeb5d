// A viewer of a scan with its relevance map on three planes, for `viewer.html.j2`. Volumes and colours come as
// `datxai.pages.viewer` packs them. Planes lie along the voxel axes, which are nearest to right, front and top.
"use strict";
const datxai = {};

datxai.view = (() => {
  const PLANES = {
    axial: { across: 2, right: 0, up: 1 },
    coronal: { across: 1, right: 0, up: 2 },
    sagittal: { across: 0, right: 1, up: 2 },
  };
  const ENDS = ["PA", "FH"]; // back and front, feet and head: the letters of DICOM
  let views = []; // that stand beside one another: one crosshair, one space, the same controls
  // what the reader has chosen stays when the next case is shown; what is a habit, on the next page too
  const chosen = { opacity: 0.8, threshold: 0, brightness: 1, outline: true, plain: true, radiological: 0, scale: 0 };
  const HABITS = { opacity: 1, outline: 1, plain: 1, radiological: 1, scale: 2 }; // and the most that they can be
  const STORE = "datxai.viewer";
  const habits = recall();

  function recall() {
    let kept = {};
    try { kept = JSON.parse(localStorage.getItem(STORE)) ?? {}; } catch { /* refused, or not ours */ }
    const fits = ([name, value]) => name in HABITS && typeof value === typeof chosen[name] && value >= 0 && value <= HABITS[name];
    return Object.fromEntries(Object.entries(kept).filter(fits));
  }

  function remember(name) {
    if (!(name in HABITS)) return;
    habits[name] = chosen[name];
    try { localStorage.setItem(STORE, JSON.stringify(habits)); } catch { /* then it ends with the page */ }
  }

  // How the pages of a run begin, unless the reader has turned them.
  datxai.begin = ({ radiological }) => Object.assign(chosen, { radiological: Number(radiological) }, habits);

  const bytesOf = (text) => {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  };

  async function unpack({ step, data }) {
    const stream = new Blob([bytesOf(data)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const halves = new Uint8Array(await new Response(stream).arrayBuffer());
    const n = halves.length / 2;
    const levels = new Int16Array(n);
    let [high, peak] = [1, 0];
    for (let i = 0; i < n; i++) {
      levels[i] = halves[i] | (halves[n + i] << 8);
      if (Math.abs(levels[i]) > high) [high, peak] = [Math.abs(levels[i]), i];
    }
    return { step, levels, high, peak };
  }

  const number = (value, digits) =>
    (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(digits - 1) : value.toPrecision(digits))
      .replaceAll("-", "\u2212");
  const millimetres = (value) => String(Math.round(value * 10) / 10 || 0).replace("-", "\u2212");

  return async function view(host, spaces, colours) {
    views = views.filter((other) => other.host.isConnected);
    const part = (selector) => host.querySelector(selector);
    const control = (name) => part(`[name="${name}"]`);
    const uptakeScales = Object.values(colours.uptake).map(bytesOf);
    const relevanceScale = bytesOf(colours.relevance);
    let space, at; // what is shown, and the voxel under the crosshair
    const others = () => views.filter((other) => other !== own);
    const own = {
      host,
      enter,
      where: () => at,
      follow: (index) => { if (space) { at = index; draw(); } },
      obey: () => { readControls(); if (space) draw(); },
    };
    views.push(own);

    const offset = ([x, y, z]) => (x * space.shape[1] + y) * space.shape[2] + z;
    const worldOf = (index) => space.affine.slice(0, 3).map(([a, b, c, d]) => a * index[0] + b * index[1] + c * index[2] + d);
    const spacing = (axis) => Math.hypot(...space.affine.slice(0, 3).map((row) => row[axis]));
    const flipped = (plane) => chosen.radiological && plane.right === 0;

    async function enter(number) {
      const packed = spaces[number];
      const [spect, relevance, outline] = await Promise.all(
        [packed.spect, packed.relevance, packed.outline].map((volume) => volume && unpack(volume)));
      for (const [volume, top] of [[spect, packed.tops?.spect], [relevance, packed.tops?.relevance]]) {
        if (top) volume.high = top / volume.step; // two scans on one scale
      }
      space = { ...packed, spect, relevance, outline };
      for (const [name, { across, right, up }] of Object.entries(PLANES)) {
        const figure = part(`[data-plane="${name}"]`);
        figure.hidden = Math.min(space.shape[right], space.shape[up]) === 1; // a single slice has one plane
        const slider = figure.querySelector("input");
        slider.max = space.shape[across] - 1;
        slider.disabled = space.shape[across] === 1;
        const [width, height] = [right, up].map((axis) => space.shape[axis] * spacing(axis));
        figure.style.flex = `${width} 1 0`; // one scale for all planes
        for (const canvas of figure.querySelectorAll("canvas")) canvas.style.aspectRatio = `${width} / ${height}`;
      }
      control("outline").closest("label").hidden = !outline;
      control("space").value = number;
    }

    function goToPeak() {
      const [, ny, nz] = space.shape;
      const { peak } = space.relevance;
      moveTo([Math.floor(peak / (ny * nz)), Math.floor(peak / nz) % ny, peak % nz]);
    }

    function moveTo(index) {
      at = index.map((i, axis) => Math.min(Math.max(Math.round(i), 0), space.shape[axis] - 1));
      draw();
      for (const other of others()) other.follow(at);
    }

    function moveBy(axis, steps) {
      const next = [...at];
      next[axis] += steps;
      moveTo(next);
    }

    function draw() {
      for (const name of Object.keys(PLANES)) drawPlane(name);
      const world = worldOf(at);
      part('[data-show="position"]').textContent = ["x", "y", "z"].map((axis, i) => `${axis} = ${millimetres(world[i])}`).join(", ") + " mm";
      part('[data-show="uptake"]').textContent = number(space.spect.levels[offset(at)] * space.spect.step, 3);
      part('[data-show="relevance"]').textContent = number(space.relevance.levels[offset(at)] * space.relevance.step, 3);
      const high = space.relevance.high * space.relevance.step;
      part('[data-show="threshold"]').textContent = number(chosen.threshold * high, 2);
      part('[data-show="opacity"]').textContent = `${Math.round(100 * chosen.opacity)} %`;
      drawBar("uptake", uptakeScales[chosen.scale], ["0", number(space.spect.high * space.spect.step / chosen.brightness, 3)]);
      drawBar("relevance", relevanceScale, [number(-high, 2), "0", number(high, 2)]);
    }

    // Colours of a slice with so much of the relevance, one pixel per voxel, the first row at the top.
    function paint({ across, right, up }, flip, opacity) {
      const [width, height] = [space.shape[right], space.shape[up]];
      const image = new ImageData(width, height);
      const { spect, relevance } = space;
      const scale = uptakeScales[chosen.scale];
      const gain = 255 * chosen.brightness / spect.high;
      const threshold = chosen.threshold * relevance.high;
      const index = [0, 0, 0];
      index[across] = at[across];
      for (let row = 0, pixel = 0; row < height; row++) {
        index[up] = height - 1 - row;
        for (let column = 0; column < width; column++, pixel += 4) {
          index[right] = flip ? width - 1 - column : column;
          const voxel = offset(index);
          const grey = 3 * Math.min(Math.max(Math.round(spect.levels[voxel] * gain), 0), 255);
          const signal = relevance.levels[voxel] / relevance.high;
          const size = Math.abs(relevance.levels[voxel]);
          const alpha = size === 0 || size < threshold ? 0 : opacity * Math.sqrt(Math.abs(signal));
          const tint = 3 * Math.round(127.5 + 127.5 * signal);
          for (let c = 0; c < 3; c++) {
            image.data[pixel + c] = scale[grey + c] + alpha * (relevanceScale[tint + c] - scale[grey + c]);
          }
          image.data[pixel + 3] = 255;
        }
      }
      return image;
    }

    function drawPlane(name) {
      const plane = PLANES[name];
      const figure = part(`[data-plane="${name}"]`);
      if (figure.hidden) return;
      const [overlay, plain] = ["[tabindex]", ".plain"].map((kind) => figure.querySelector(`canvas${kind}`));
      plain.hidden = !chosen.plain;
      drawSlice(overlay, plane, chosen.opacity);
      if (chosen.plain) drawSlice(plain, plane, 0);
      const place = `${"xyz"[plane.across]} = ${millimetres(worldOf(at)[plane.across])} mm`;
      figure.querySelector("output").textContent = place;
      const slider = figure.querySelector("input");
      slider.value = at[plane.across];
      slider.setAttribute("aria-valuetext", place);
    }

    function drawSlice(canvas, plane, opacity) {
      const { right, up } = plane;
      const flip = flipped(plane);
      const density = window.devicePixelRatio || 1;
      canvas.width = Math.max(1, Math.round(canvas.clientWidth * density));
      canvas.height = Math.max(1, Math.round(canvas.clientHeight * density));
      const context = canvas.getContext("2d");
      const image = paint(plane, flip, opacity);
      const small = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
      small.getContext("2d").putImageData(image, 0, 0);
      context.imageSmoothingQuality = "high";
      context.drawImage(small, 0, 0, canvas.width, canvas.height);

      const [cell, line] = [[canvas.width / image.width, canvas.height / image.height], Math.max(1, density)];
      const columnOf = (i) => (flip ? image.width - i : i) * cell[0]; // of the edge below voxel i
      const rowOf = (i) => (image.height - i) * cell[1];
      const stroke = (path, colour, width) => {
        [context.strokeStyle, context.lineWidth, context.lineJoin, context.lineCap] = [colour, width, "round", "round"];
        context.stroke(path);
      };
      if (space.outline && chosen.outline) {
        stroke(contour(plane, 1, columnOf, rowOf), "#808080", line);
        const striatum = contour(plane, 2, columnOf, rowOf); // dark within bright, so that it is seen on any colour
        stroke(striatum, "#ffffff", 2.6 * line);
        stroke(striatum, "#101010", 1.2 * line);
      }
      const cross = new Path2D();
      const [x, y] = [columnOf(at[right] + 0.5), rowOf(at[up] + 0.5)];
      cross.moveTo(x, 0); cross.lineTo(x, canvas.height);
      cross.moveTo(0, y); cross.lineTo(canvas.width, y);
      stroke(cross, "#808080", line);
      drawLetters(context, plane, flip, density);
    }

    // The border of what is labelled ``label`` or more, through the middles between voxels within and without.
    function contour({ across, right, up }, label, columnOf, rowOf) {
      const [width, height] = [space.shape[right], space.shape[up]];
      const index = [0, 0, 0];
      index[across] = at[across];
      const inside = new Uint8Array((width + 2) * (height + 2)); // with room around it, so that every border is closed
      for (let v = 0; v < height; v++) {
        for (let u = 0; u < width; u++) {
          [index[right], index[up]] = [u, v];
          inside[(v + 1) * (width + 2) + u + 1] = space.outline.levels[offset(index)] * space.outline.step > label - 0.5;
        }
      }
      const path = new Path2D();
      for (let v = -1; v < height; v++) {
        for (let u = -1; u < width; u++) {
          const low = (v + 1) * (width + 2) + u + 1, high = low + width + 2;
          const [a, b, c, d] = [inside[low], inside[low + 1], inside[high + 1], inside[high]]; // round four voxels
          if (a === b && b === c && c === d) continue;
          const ends = [[a !== b, u + 1, v + 0.5], [b !== c, u + 1.5, v + 1], [c !== d, u + 1, v + 1.5], [d !== a, u + 0.5, v + 1]]
            .filter(([crossed]) => crossed).map(([, i, j]) => [columnOf(i), rowOf(j)]);
          for (let i = 0; i < ends.length; i += 2) { path.moveTo(...ends[i]); path.lineTo(...ends[i + 1]); }
        }
      }
      return path;
    }

    function drawLetters(context, { right, up }, flip, density) {
      const { width, height } = context.canvas;
      const [low, high] = right === 0 ? space.sides : ENDS[0];
      const letters = [[flip ? high : low, 0.03, 0.5, "left"], [flip ? low : high, 0.97, 0.5, "right"],
        [(up === 1 ? ENDS[0] : ENDS[1])[1], 0.5, 0.05, "center"], [(up === 1 ? ENDS[0] : ENDS[1])[0], 0.5, 0.95, "center"]];
      context.font = `600 ${Math.round(15 * density)}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      context.lineWidth = 3 * density;
      context.lineJoin = "round";
      context.strokeStyle = "#ffffff";
      context.fillStyle = "#000";
      for (const [letter, across, down, align] of letters) {
        context.textAlign = align;
        context.strokeText(letter, across * width, down * height);
        context.fillText(letter, across * width, down * height);
      }
    }

    function drawBar(name, scale, ends) {
      const bar = part(`[data-bar="${name}"]`);
      const image = new ImageData(256, 1);
      for (let i = 0; i < 256; i++) image.data.set([...scale.subarray(3 * i, 3 * i + 3), 255], 4 * i);
      bar.querySelector("canvas").getContext("2d").putImageData(image, 0, 0);
      bar.querySelector(".ends").replaceChildren(...ends.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    }

    for (const [name, plane] of Object.entries(PLANES)) {
      const { across, right, up } = plane;
      const figure = part(`[data-plane="${name}"]`);
      const overlay = figure.querySelector("canvas[tabindex]");
      figure.querySelector("input").addEventListener("input", (event) => moveBy(across, event.target.value - at[across]));
      const point = (event) => {
        const box = event.target.getBoundingClientRect();
        const next = [...at];
        const u = Math.floor((event.clientX - box.left) / box.width * space.shape[right]);
        next[right] = flipped(plane) ? space.shape[right] - 1 - u : u;
        next[up] = space.shape[up] - 1 - Math.floor((event.clientY - box.top) / box.height * space.shape[up]);
        moveTo(next);
      };
      let turned = 0;
      const turn = (event) => {
        event.preventDefault();
        turned += event.deltaMode ? 40 * event.deltaY : event.deltaY;
        const steps = Math.trunc(turned / 40); // a touchpad sends many small turns
        turned -= 40 * steps;
        if (steps) moveBy(across, -steps);
      };
      for (const canvas of figure.querySelectorAll("canvas")) {
        canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); point(event); });
        canvas.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
        canvas.addEventListener("wheel", turn, { passive: false });
      }
      overlay.addEventListener("keydown", (event) => {
        const sign = flipped(plane) ? -1 : 1;
        const move = {
          ArrowRight: [right, sign], ArrowLeft: [right, -sign], ArrowUp: [up, 1], ArrowDown: [up, -1],
          PageUp: [across, 1], PageDown: [across, -1],
        }[event.key];
        if (!move && event.key !== "Home") return;
        event.preventDefault();
        if (move) moveBy(...move); else goToPeak();
      });
      new ResizeObserver(() => at && drawPlane(name)).observe(overlay);
    }

    const options = (name, texts) => control(name).replaceChildren(...texts.map((text, value) => new Option(text, value)));
    options("scale", Object.keys(colours.uptake));
    options("space", spaces.map((space) => space.name));
    control("space").closest("label").hidden = spaces.length === 1;
    control("space").addEventListener("change", async (event) => {
      await Promise.all(views.map((each) => each.enter(Number(event.target.value))));
      goToPeak();
    });
    part("button").addEventListener("click", goToPeak);
    const keyOf = (input) => (input.type === "checkbox" ? "checked" : "value");
    function readControls() {
      for (const [name, value] of Object.entries(chosen)) {
        const key = keyOf(control(name));
        control(name)[key] = key === "checked" ? value : String(Number(value));
      }
    }
    readControls();
    for (const name of Object.keys(chosen)) {
      const input = control(name);
      input.addEventListener("input", () => {
        chosen[name] = keyOf(input) === "checked" ? input.checked : Number(input.value);
        draw();
        remember(name);
        for (const other of others()) other.obey();
      });
    }
    host.hidden = false;
    await enter(0);
    const before = views[0] === own ? undefined : views[0].where();
    if (before) own.follow(before); else goToPeak();
    host.dataset.state = "ready";
  };
})();
