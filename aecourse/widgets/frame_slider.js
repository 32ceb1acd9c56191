// The browser's half of FrameSlider: shows one of several pictures. No dependencies, no requests.

const PAUSE = 700; // milliseconds between frames when it plays

function render({ model, el }) {
  const id = newId();
  const values = model.get("values");
  const descriptions = model.get("descriptions");
  const buffer = bytes(model.get("frames"));
  let offset = 0;
  const urls = model.get("sizes").map((size) => {
    const picture = new Blob([buffer.slice(offset, (offset += size))], { type: "image/png" });
    return URL.createObjectURL(picture);
  });

  const [width, height] = model.get("image_size");
  const picture = element("img", { width, height, class: "dark-light" }); // the theme dims others in the dark
  const caption = element("p", { class: "aw-caption", "aria-live": "polite" });
  const { input, value, row } = slider(`${id}-frame`, [model.get("name")],
    { min: 0, max: values.length - 1, step: 1 }, (index) => { stop(); move(index); });

  let timer = null;
  const play = button("Play", () => (timer === null ? start() : stop()));
  function start() {
    if (model.get("index") === values.length - 1) move(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (model.get("index") === values.length - 1) stop();
      else move(model.get("index") + 1);
    }, PAUSE);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function move(index) {
    model.set("index", index); // which tells draw
    model.save_changes();
  }

  function draw() {
    const index = model.get("index");
    picture.src = urls[index];
    picture.alt = descriptions[index];
    caption.textContent = descriptions[index];
    input.value = index;
    input.setAttribute("aria-valuetext", values[index]); // a screen reader says the value, not the number
    value.textContent = values[index];
  }

  el.replaceChildren(element("div", {
    class: "aecourse-widget frame-slider", role: "group", "aria-label": `Slider: ${model.get("name")}`,
  }, picture, element("div", { class: "fs-controls" }, row, play), caption));
  model.on("change:index", draw);
  draw();
  return () => {
    stop();
    model.off("change:index", draw);
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
