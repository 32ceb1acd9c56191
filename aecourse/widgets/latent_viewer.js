// The browser's half of LatentViewer: decodes z and draws. No dependencies, no requests.

// Colours of aecourse.plots, so that a class looks the same in every figure.
const COLOURS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
                 "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"];
const PLANE = 280; // pixels of the canvas, which the style sheet may shrink
const NEIGHBOURS = 15;

/** Lay typed arrays over the bytes that pack_layers (latent_viewer.py) wrote. */
function unpack(view, sizes) {
  const buffer = bytes(view);
  const layers = [];
  let offset = 0;
  for (let i = 1; i < sizes.length; i++) {
    const scale = new Float32Array(buffer, offset, sizes[i]);
    const bias = new Float32Array(buffer, offset + 4 * sizes[i], sizes[i]);
    offset += 8 * sizes[i];
    layers.push({ scale, bias });
  }
  layers.forEach((layer, i) => {
    layer.weight = new Int8Array(buffer, offset, sizes[i] * sizes[i + 1]);
    offset += layer.weight.length;
  });
  return layers;
}

/** Linear layers with a ReLU between each two; a sigmoid at the end for logits. */
function decode(layers, z, sigmoid) {
  let input = Float32Array.from(z);
  layers.forEach(({ scale, bias, weight }, number) => {
    const output = new Float32Array(bias.length);
    for (let row = 0, at = 0; row < output.length; row++) {
      let sum = 0;
      for (let column = 0; column < input.length; column++) sum += weight[at++] * input[column];
      output[row] = sum * scale[row] + bias[row];
    }
    const last = number === layers.length - 1;
    if (!last) for (let i = 0; i < output.length; i++) output[i] = Math.max(output[i], 0);
    else if (sigmoid) for (let i = 0; i < output.length; i++) output[i] = 1 / (1 + Math.exp(-output[i]));
    input = output;
  });
  return input;
}

/** The digit that most of the codes nearest to z stand for: a picture's content, in words. */
function commonLabel(z, codes, labels) {
  if (!labels.length) return "";
  const distances = Array.from(labels, (label, i) => {
    let sum = 0;
    for (let j = 0; j < z.length; j++) sum += (codes[i * z.length + j] - z[j]) ** 2;
    return [sum, label];
  });
  const counts = new Map();
  for (const [, label] of distances.sort((a, b) => a[0] - b[0]).slice(0, NEIGHBOURS)) {
    counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1])[0][0];
}

function median(values) {
  return values.sort((a, b) => a - b)[values.length >> 1];
}

function render({ model, el }) {
  const id = newId();
  const [height, width] = model.get("image_size");
  const limit = model.get("limit");
  const count = model.get("z").length;
  const layers = unpack(model.get("weights"), model.get("layer_sizes"));
  const codes = new Float32Array(bytes(model.get("codes")));
  const labels = new Uint8Array(bytes(model.get("labels")));

  const picture = element("canvas", { class: "lv-picture", role: "img", width, height });
  const caption = element("p", { class: "aw-caption", "aria-live": "polite" });
  const hasPlane = count === 2 && labels.length > 0;
  // The plane is a second way to do what the sliders do, so the keyboard may pass it by.
  const plane = element("canvas", {
    class: "lv-plane", role: "img", width: PLANE, height: PLANE,
    "aria-label": `The plane of z: codes of ${labels.length} test images, coloured by digit. ` +
      "A cross marks where the sliders stand.",
  });

  const sliders = model.get("z").map((_, i) =>
    slider(`${id}-z${i}`, ["z", element("sub", {}, String(i + 1))],
      { min: -limit, max: limit, step: limit / 60 }, (value) => {
        const z = [...model.get("z")];
        z[i] = value;
        move(z);
      }));

  const random = button("Draw z from the prior", () => {
    // Box and Muller's pair of standard normal numbers, kept inside the sliders' range.
    const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    move(Array.from({ length: count }, () => Math.max(-limit, Math.min(limit, normal()))));
  });
  const origin = button("Back to 0", () => move(new Array(count).fill(0)));

  function move(z) {
    model.set("z", z); // which tells draw
    model.save_changes();
  }

  function draw() {
    const z = model.get("z");
    const pixels = decode(layers, z, model.get("sigmoid"));
    const image = new ImageData(width, height);
    pixels.forEach((value, i) => {
      const grey = Math.round(255 * (1 - Math.max(0, Math.min(1, value))));
      image.data.set([grey, grey, grey, 255], 4 * i);
    });
    picture.getContext("2d").putImageData(image, 0, 0);
    sliders.forEach(({ input, value }, i) => {
      input.value = z[i];
      value.textContent = inWords(z[i]);
    });
    const near = commonLabel(z, codes, labels);
    const place = `z = (${sliders.map(({ value }) => value.textContent).join(", ")})`;
    picture.setAttribute("aria-label", `Image decoded at ${place}` +
      (near === "" ? "" : `, where most test images nearby show a ${near}`));
    caption.textContent = near === "" ? place : `Most test images coded near here show a ${near}.`;
    if (hasPlane) drawPlane(z);
  }

  const toPlane = (value, flip) => PLANE * (0.5 + (flip ? -0.5 : 0.5) * value / limit);

  // The codes never change: draw them once, and put only the cross on top when z moves.
  const background = hasPlane && element("canvas", { width: PLANE, height: PLANE });
  if (hasPlane) {
    const pen = background.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, PLANE, PLANE);
    const classes = new Map();
    labels.forEach((label, i) => {
      const x = codes[2 * i], y = codes[2 * i + 1];
      if (!classes.has(label)) classes.set(label, { xs: [], ys: [] });
      classes.get(label).xs.push(x);
      classes.get(label).ys.push(y);
      pen.fillStyle = COLOURS[label % COLOURS.length];
      pen.beginPath();
      pen.arc(toPlane(x), toPlane(y, true), 1.8, 0, 2 * Math.PI);
      pen.fill();
    });
    pen.font = "bold 12px sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (const [label, { xs, ys }] of classes) {
      const x = toPlane(median(xs)), y = toPlane(median(ys), true);
      pen.fillStyle = "white";
      pen.strokeStyle = COLOURS[label % COLOURS.length];
      pen.beginPath();
      pen.arc(x, y, 8, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
      pen.fillStyle = "black";
      pen.fillText(String(label), x, y);
    }
  }

  function drawPlane([z1, z2]) {
    const pen = plane.getContext("2d");
    pen.drawImage(background, 0, 0);
    const x = toPlane(z1), y = toPlane(z2, true);
    for (const [colour, thickness] of [["white", 5], ["black", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thickness;
      pen.beginPath();
      pen.moveTo(x - 9, y);
      pen.lineTo(x + 9, y);
      pen.moveTo(x, y - 9);
      pen.lineTo(x, y + 9);
      pen.stroke();
    }
  }

  function pointAt(event) {
    const box = plane.getBoundingClientRect();
    const scale = (at, size) => Math.max(-limit, Math.min(limit, limit * (2 * at / size - 1)));
    move([scale(event.clientX - box.left, box.width), -scale(event.clientY - box.top, box.height)]);
  }
  plane.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    pointAt(event);
  });
  plane.addEventListener("pointermove", (event) => {
    if (event.buttons) pointAt(event);
  });

  el.replaceChildren(element("div", { class: "aecourse-widget latent-viewer", role: "group", "aria-label": "Latent slider" },
    ...(hasPlane ? [plane] : []),
    picture,
    element("div", { class: "lv-controls" },
      ...sliders.map(({ row }) => row),
      // An autoencoder has no prior to draw from.
      element("div", { class: "aw-buttons" }, ...(model.get("has_prior") ? [random] : []), origin), caption)));
  model.on("change:z", draw);
  draw();
  return () => model.off("change:z", draw);
}

export default { render };
