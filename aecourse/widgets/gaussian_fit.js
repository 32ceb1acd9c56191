// The browser's half of GaussianFit: a Gaussian q against a fixed mixture p. No dependencies, no requests.

const GREY = "#717581", BLUE = "#1f6fb5"; // p and q; p is filled and q is not, so colour is not the only clue
const POINTS = 801; // of each integral, from -8 to 8 standard deviations
const LOG_2PI = Math.log(2 * Math.PI);

const logNormal = (x, mean, std) => -0.5 * (((x - mean) / std) ** 2 + LOG_2PI) - Math.log(std);

function logMixture(x, { weights, means, stds }) {
  const terms = weights.map((weight, i) => Math.log(weight) + logNormal(x, means[i], stds[i]));
  const most = Math.max(...terms);
  return most + Math.log(terms.reduce((sum, term) => sum + Math.exp(term - most), 0));
}

/** E f(x) for x ~ N(mean, std^2), by the trapezoidal rule. */
function expectation(f, mean, std) {
  const step = 16 / (POINTS - 1);
  let sum = 0;
  for (let i = 0; i < POINTS; i++) {
    const u = -8 + i * step;
    sum += Math.exp(logNormal(u, 0, 1)) * f(mean + std * u);
  }
  return sum * step;
}

const forwardKl = (p, mean, std) => p.weights.reduce((sum, weight, i) => sum + weight
  * expectation((x) => logMixture(x, p) - logNormal(x, mean, std), p.means[i], p.stds[i]), 0);
const reverseKl = (p, mean, std) =>
  expectation((x) => logNormal(x, mean, std) - logMixture(x, p), mean, std);

/** Walk downhill from here to the nearest minimum of a function of (mean, log std): a pattern search. */
function descend(f, mean, logStd) {
  let best = f(mean, Math.exp(logStd));
  for (let step = 0.25; step > 1e-4;) {
    let moved = false;
    for (const [a, b] of [[step, 0], [-step, 0], [0, step], [0, -step]]) {
      const value = f(mean + a, Math.exp(logStd + b));
      if (value < best - 1e-12) {
        [mean, logStd, best, moved] = [mean + a, logStd + b, value, true];
        break;
      }
    }
    if (!moved) step /= 2;
  }
  return [mean, Math.exp(logStd)];
}

function render({ model, el }) {
  const id = newId();
  const p = { weights: model.get("weights"), means: model.get("means"), stds: model.get("stds") };
  const [low, high] = model.get("range");
  const [narrowest, widest] = model.get("std_range");
  const evidence = model.get("log_evidence"); // null, or p is the posterior of one example
  const isPosterior = evidence !== null;

  const canvas = element("canvas", { role: "img" });
  const live = element("p", { class: "aw-caption", "aria-live": "polite" });
  const rows = isPosterior
    ? ["log p(x)", "ELBO", "gap: KL(q \u2225 posterior)"]
    : ["forward: KL(p \u2225 q)", "reverse: KL(q \u2225 p)"];
  const cells = rows.map(() => element("td"));
  const table = element("table", {}, element("caption", { class: "visually-hidden" }, "In nats"),
    element("tbody", {}, ...rows.map((name, i) =>
      element("tr", {}, element("th", { scope: "row" }, name), cells[i]))));

  const put = (mean, std) => {
    model.set("std", Math.max(narrowest, Math.min(widest, std)));
    model.set("mean", Math.max(low, Math.min(high, mean)));
    model.save_changes();
  };
  const meanSlider = slider(`${id}-mean`, ["mean of q"],
    { min: low, max: high, step: (high - low) / 200 }, (value) => put(value, model.get("std")));
  // Standard deviations differ by factors, so the slider moves their logarithm.
  const stdSlider = slider(`${id}-std`, ["std of q"],
    { min: Math.log(narrowest), max: Math.log(widest), step: Math.log(widest / narrowest) / 200 },
    (value) => put(model.get("mean"), Math.exp(value)));

  const walk = (divergence) => () =>
    put(...descend((mean, std) => divergence(p, mean, std), model.get("mean"), Math.log(model.get("std"))));
  const buttons = isPosterior
    ? [button("Climb the ELBO from here", walk(reverseKl))]
    : [button("Descend the forward KL", walk(forwardKl)), button("Descend the reverse KL", walk(reverseKl))];

  const peak = Math.max(...Array.from({ length: 400 }, (_, i) =>
    Math.exp(logMixture(low + (high - low) * i / 399, p))));

  function draw() {
    const mean = model.get("mean"), std = model.get("std");
    const forward = forwardKl(p, mean, std), reverse = reverseKl(p, mean, std);
    const shown = isPosterior ? [evidence, evidence - reverse, reverse] : [forward, reverse];
    shown.forEach((value, i) => { cells[i].textContent = inWords(value, 3); });
    meanSlider.input.value = mean;
    stdSlider.input.value = Math.log(std);
    stdSlider.input.setAttribute("aria-valuetext", inWords(std));
    meanSlider.value.textContent = inWords(mean);
    stdSlider.value.textContent = inWords(std);
    const words = rows.map((name, i) => `${name} = ${inWords(shown[i])}`).join(", ");
    live.textContent = `${words} nats.`;
    canvas.setAttribute("aria-label", `The density p, filled, with ${p.means.length} ` +
      `component${p.means.length > 1 ? "s" : ""}, and the Gaussian q with mean ${inWords(mean)} and ` +
      `standard deviation ${inWords(std)}, a line.`);

    // As many pixels as the screen has, so that text stays text at any width.
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth || 640, height = canvas.clientHeight || 240;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = "white";
    pen.fillRect(0, 0, width, height);
    const floor = height - 24, top = 14, most = 1.6 * peak; // a q that is higher is cut off
    const toX = (x) => width * (x - low) / (high - low);
    const toY = (density) => Math.max(top, floor - (floor - top) * density / most);
    const path = (density) => {
      pen.beginPath();
      for (let i = 0; i <= width; i++) pen.lineTo(i, toY(density(low + (high - low) * i / width)));
    };
    path((x) => Math.exp(logMixture(x, p)));
    pen.strokeStyle = GREY;
    pen.lineWidth = 1.5;
    pen.stroke();
    pen.lineTo(width, floor);
    pen.lineTo(0, floor);
    pen.fillStyle = "#7175814d";
    pen.fill();
    path((x) => Math.exp(logNormal(x, mean, std)));
    pen.strokeStyle = BLUE;
    pen.lineWidth = 2.5;
    pen.stroke();
    pen.font = "13px sans-serif";
    pen.textAlign = "center";
    pen.fillStyle = "#333";
    for (let tick = Math.ceil(low); tick <= high; tick++) {
      if ((high - low) > 12 && tick % 2) continue;
      pen.fillText(inWords(tick, 0), Math.max(8, Math.min(width - 8, toX(tick))), height - 8);
    }
    pen.font = "italic bold 15px serif";
    pen.fillStyle = BLUE;
    pen.fillText("q", toX(mean), toY(Math.exp(logNormal(mean, mean, std))) + 18);
    const heaviest = p.weights.indexOf(Math.max(...p.weights));
    pen.fillStyle = "#333";
    pen.fillText(isPosterior ? "p(z|x)" : "p", toX(p.means[heaviest]), floor - 8);
  }

  const drag = (event) => {
    const box = canvas.getBoundingClientRect();
    put(low + (high - low) * (event.clientX - box.left) / box.width, model.get("std"));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag(event);
  });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });

  el.replaceChildren(element("div", {
    class: "aecourse-widget gaussian-fit", role: "group", "aria-label": "A Gaussian q against a density p",
  }, canvas, meanSlider.row, stdSlider.row, element("div", { class: "aw-buttons" }, ...buttons), table,
  element("div", { class: "visually-hidden" }, live)));
  model.on("change:mean", draw);
  model.on("change:std", draw);
  const resized = new ResizeObserver(draw);
  resized.observe(el);
  draw();
  return () => {
    resized.disconnect();
    model.off("change:mean", draw);
    model.off("change:std", draw);
  };
}

export default { render };
