// Runs the course's widgets on a page that has no kernel.
//
// MyST-NB writes the saved state of all widgets of a page into one script tag and a small tag where each
// widget stood. Jupyter's own html-manager could read these, from a CDN and at 4 MB; our widgets need
// only a model to talk to, so this gives each one a model that answers from the saved state.
//
// A classic script, not a module: browsers refuse modules on a page opened straight from disk.
(() => {
  const STATE = "application/vnd.jupyter.widget-state+json";
  const VIEW = "application/vnd.jupyter.widget-view+json";

  function decodeBuffer({ data }) {
    const text = atob(data);
    return new DataView(Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer);
  }

  /** What anywidget calls a model: get, set, on, off. There is no kernel to save changes to. */
  function createModel(saved) {
    const values = { ...saved.state };
    for (const buffer of saved.buffers ?? []) values[buffer.path[0]] = decodeBuffer(buffer);
    const listeners = new Map();
    return {
      get: (name) => values[name],
      set(name, value) {
        values[name] = value;
        for (const listener of listeners.get(`change:${name}`) ?? []) listener();
      },
      save_changes() {},
      on(event, listener) {
        if (!listeners.has(event)) listeners.set(event, new Set());
        listeners.get(event).add(listener);
      },
      off: (event, listener) => listeners.get(event)?.delete(listener),
    };
  }

  async function show(place, saved) {
    const url = URL.createObjectURL(new Blob([saved.state._esm], { type: "text/javascript" }));
    try {
      const { default: widget } = await import(url);
      const style = document.createElement("style");
      style.textContent = saved.state._css ?? "";
      const el = document.createElement("div");
      await widget.render({ model: createModel(saved), el });
      place.replaceChildren(style, el);
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  function start() {
    const tag = document.querySelector(`script[type="${STATE}"]`);
    if (!tag) return;
    const models = JSON.parse(tag.textContent).state;
    // Decoding weights takes a moment: wait until a widget is about to be seen.
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        show(target, models[target.dataset.model]).catch((error) => {
          target.textContent = `This interactive figure could not start: ${error.message}`;
          console.error(error);
        });
      }
    }, { rootMargin: "300px" });
    for (const view of document.querySelectorAll(`script[type="${VIEW}"]`)) {
      const place = document.createElement("div");
      place.className = "widget-place";
      place.dataset.model = JSON.parse(view.textContent).model_id;
      view.after(place);
      observer.observe(place);
    }
  }

  start();
})();
