// The live face of a panel: native sliders, so that labels, arrow keys and screen readers work as everywhere, and a
// store of pictures, so that a slider that moves to a picture which is here already asks nobody.

const PATIENCE = 10000; // ms without an answer after which the reader is told
const MOST = 600; // pictures that are kept, each some tens of kilobytes
const SETTLED = 400; // ms after which words are read out: not every step of a drag

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function render({ model, el }) {
  // Every panel loads a module of its own: a number counted here would be the same in all of them.
  const own = `apgd-${Math.random().toString(36).slice(2)}`;
  const controls = model.get("controls");
  const frames = new Map(); // "3,0": { url, words, photo }
  let asked = ""; // the setting that the kernel was asked for and has not answered
  let patience = 0;
  let settled = 0;
  let heard = false; // whether the kernel has ever answered
  let touched = false; // whether a reader has moved anything since the page was loaded

  const picture = make("img");
  const words = make("p", { class: "apgd-words", "aria-hidden": "true" }); // the picture's alt says the same
  const aloud = make("p", { class: "apgd-aloud", "aria-live": "polite" });
  const status = make("span", { class: "apgd-status", role: "status" });
  const reset = make("button", { type: "button", class: "apgd-reset" }, "Reset");
  const inputs = controls.map((control, place) => {
    const id = `${own}-${place}`;
    // JupyterLab takes arrow keys for its own, unless the element itself says otherwise.
    const common = { id, "data-lm-suppress-shortcuts": "true" };
    const input =
      control.kind === "choice"
        ? make("select", common, ...control.labels.map((label) => make("option", {}, label)))
        : make("input", { ...common, type: "range", min: 0, max: control.labels.length - 1, step: 1 });
    // What it stands at is read out as the input's own value.
    const shown = control.kind === "choice" ? [] : [make("output", { for: id, "aria-hidden": "true" })];
    const row = make("div", { class: "apgd-control" }, make("label", { for: id }, control.name), input, ...shown);
    input.addEventListener("input", () => {
      touched = true;
      const chosen = [...model.get("chosen")];
      chosen[place] = control.kind === "choice" ? input.selectedIndex : Number(input.value);
      choose(chosen);
    });
    return { row, input, output: shown[0] };
  });
  reset.addEventListener("click", () => choose(controls.map((control) => control.start)));
  const bar = make("div", { class: "apgd-bar" }, ...inputs.map((one) => one.row), reset, status);
  const attributes = { class: "apgd-panel", role: "group", "aria-label": model.get("title") };
  el.append(make("div", attributes, bar, picture, words, aloud));

  function choose(chosen) {
    model.set("chosen", chosen);
    model.save_changes();
  }

  function update() {
    const chosen = model.get("chosen");
    controls.forEach((control, place) => {
      const { input, output } = inputs[place];
      const label = control.labels[chosen[place]];
      if (control.kind === "choice") input.selectedIndex = chosen[place];
      else {
        input.value = chosen[place];
        input.setAttribute("aria-valuetext", label);
        output.textContent = label;
      }
    });
    const key = chosen.join(",");
    if (frames.has(key)) put(key);
    else ask(key);
  }

  function put(key) {
    const frame = frames.get(key);
    status.textContent = "";
    if (picture.dataset.key === key) return;
    picture.src = frame.url;
    picture.alt = frame.words;
    picture.className = frame.photo ? "apgd-photo" : "";
    picture.dataset.key = key;
    say(frame.words);
  }

  function say(text) {
    words.textContent = text;
    clearTimeout(settled);
    settled = setTimeout(() => (aloud.textContent = text), SETTLED);
  }

  function failed(sentence) {
    // The picture that is still there belongs to another setting.
    status.textContent = "not drawn";
    picture.className = "apgd-stale";
    picture.alt = "";
    picture.dataset.key = "";
    say(sentence);
  }

  function ask(key) {
    status.textContent = "drawing …";
    if (asked) return; // one at a time: what lies between is not needed any more when the answer comes
    asked = key;
    clearTimeout(patience);
    patience = setTimeout(unanswered, PATIENCE);
    try {
      model.send({ want: key.split(",").map(Number) });
    } catch {
      unanswered(); // the kernel that knew this panel is gone
    }
  }

  function unanswered() {
    asked = "";
    clearTimeout(patience);
    // In a notebook that was opened again without its kernel there is the first picture only: sliders stand as it does.
    // But a reader's move is not taken back: its picture comes when the kernel is free.
    if (!heard && !touched) choose(model.get("first").at);
    status.textContent = "no answer: the kernel is busy with a cell, or no longer the one that made this; run the cell";
  }

  function keep(frame, bytes) {
    const key = frame.at.join(",");
    if (frames.has(key)) return; // asked for and drawn ahead at the same time: the same picture
    for (const [oldest, old] of frames) {
      if (frames.size < MOST) break;
      if (oldest === picture.dataset.key) continue;
      URL.revokeObjectURL(old.url);
      frames.delete(oldest);
    }
    frames.set(key, { ...frame, url: URL.createObjectURL(new Blob([bytes], { type: "image/png" })) });
  }

  function answered(key) {
    if (asked !== key) return;
    asked = "";
    clearTimeout(patience);
  }

  function onMessage(message, buffers) {
    heard = true;
    if (message.what === "call") {
      model.send({ here: own });
      return;
    }
    const key = message.at.join(",");
    const here = model.get("chosen").join(",");
    answered(key);
    if (message.what === "picture") {
      keep(message, buffers[0]);
      if (key === here) put(key);
      else if (!frames.has(here)) ask(here);
    } else if (message.what === "sorry") {
      if (key === here) failed(message.sentence);
      else if (!frames.has(here)) ask(here);
    }
  }

  keep(model.get("first"), model.get("picture"));
  model.on("msg:custom", onMessage);
  model.on("change:chosen", update);
  model.send({ hello: own });
  put(model.get("first").at.join(","));
  update();
  return () => {
    model.off("msg:custom", onMessage);
    model.off("change:chosen", update);
    clearTimeout(patience);
    clearTimeout(settled);
    try {
      model.send({ bye: own });
    } catch {
      // Nobody is there to be told.
    }
    frames.forEach((frame) => URL.revokeObjectURL(frame.url));
  };
}

export default { render };
