// What the widgets share: elements, a labelled slider, numbers with a true minus sign.
// widgets/__init__.py puts this text before each widget's own: a widget travels as one piece.

let instances = 0;

/** An id that no other widget of the page has, to tie labels to their inputs. */
const newId = () => `aecourse-widget-${instances++}-${Math.random().toString(36).slice(2, 8)}`;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A row of label, range input and the value in words; onInput gets the input's number. */
function slider(id, name, range, onInput) {
  const label = element("label", { for: id }, ...name);
  // The attribute: else JupyterLab takes the arrow keys.
  const input = element("input", { type: "range", id, ...range, "data-lm-suppress-shortcuts": "true" });
  const value = element("output", { for: id });
  input.addEventListener("input", () => onInput(input.valueAsNumber));
  return { input, value, row: element("div", { class: "aw-slider" }, label, input, value) };
}

function button(text, onClick) {
  const node = element("button", { type: "button" }, text);
  node.addEventListener("click", onClick);
  return node;
}

const inWords = (value, digits = 2) => value.toFixed(digits).replace("-", "\u2212");

/** A copy of the bytes: they may start anywhere in a larger buffer, and Float32Array wants multiples of 4. */
const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
