// The page: a text is typed, the student's answer is shown, with the time that it took.

import { load } from "./student.mjs";

const HUES = 8;
const at = (id) => document.getElementById(id);
const began = performance.now();
let expected = 1, come = 0;

function element(name, text, ...more) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...more);
  return made;
}

/** The parts of a text that have something to say, marked. */
function marked(text, parts, types) {
  const nodes = [];
  let last = 0;
  for (const { units, type } of parts) {
    nodes.push(text.slice(last, units[0]));
    const mark = element("mark", text.slice(...units), element("small", type));
    mark.style.setProperty("--hue", `var(--h${types.indexOf(type) % HUES})`);
    nodes.push(mark);
    last = units[1];
  }
  return [...nodes, text.slice(last)];
}

function bars(labels, confidences, chosen) {
  const order = labels.map((_, i) => i).sort((a, b) => confidences[b] - confidences[a]);
  return order.map((i) => {
    const fill = element("i");
    fill.style.width = `${100 * confidences[i]}%`;
    const row = element("div", "", element("span", labels[i]), element("div", "", fill), element("b", percent(confidences[i])));
    row.className = chosen.includes(labels[i]) ? "bar likely" : "bar";
    return row;
  });
}

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)}%`;

function show(student, said, took) {
  const { labels, roles } = student.values;
  at("answer").hidden = said === null;
  if (said === null) return;
  if (said.tokens) {
    const types = roles ? [...new Set(roles.map(([, type]) => type))].filter(Boolean) : labels;
    const words = said.units.map((units, i) => ({ units, type: said.labels[i] }));
    at("shown").replaceChildren(...marked(said.text, said.entities ?? words, types));
    const found = said.entities ? `${said.entities.length} found in ` : "";
    at("took").textContent = `${found}${said.tokens.length} words, ${took.toFixed(1)} ms`;
  } else {
    at("bars").replaceChildren(...bars(labels, said.confidences, said.labels ?? [said.label]));
    at("took").textContent = `${took.toFixed(1)} ms${said.truncated ? "; the text was too long and was cut" : ""}`;
  }
}

function fail(error) {
  at("status").className = "wrong";
  at("status").textContent = `This student cannot run here: ${error.message ?? error}`;
  at("progress").hidden = true;
}

async function start() {
  at("status").textContent = "Loading";
  at("progress").hidden = false;
  const about = await (await fetch(new URL("about.json", import.meta.url))).json();
  document.title = about.title;
  at("title").textContent = about.title;
  at("about").textContent = about.line;
  expected = about.bytes;
  const student = await load({
    progress(bytes) {
      come += bytes;
      at("progress").value = Math.min(1, come / expected);
      at("status").textContent = `Loading ${(come / 1e6).toFixed(1)} of ${(expected / 1e6).toFixed(1)} MB`;
    },
  });
  // The first run allocates what later ones use.
  await student.ask("a");
  const seconds = (performance.now() - began) / 1000;
  // What a cache gives is 0 bytes here.
  const wire = performance.getEntriesByType("resource").reduce((sum, one) => sum + (one.transferSize ?? 0), 0);
  at("progress").hidden = true;
  at("status").hidden = true;
  at("form").hidden = false;
  at("pair").hidden = student.values.form === "words";
  const threads = globalThis.crossOriginIsolated
    ? `${student.threads} thread${student.threads > 1 ? "s" : ""}`
    : "1 thread: threads are off, for this page is not isolated from other origins (headers COOP and COEP)";
  at("machine").textContent =
    `Ready after ${seconds.toFixed(1)} s, ${wire > 1e5 ? `${(wire / 1e6).toFixed(1)} MB over the wire` : "out of the browser's cache"}. ` +
    `onnxruntime-web ${about.runtime} on the processor, ${threads}.`;

  let asked = 0, running = Promise.resolve();
  const ask = () => {
    const own = ++asked;
    running = running.then(async () => {
      if (own !== asked) return; // a later text is waiting
      const second = at("second").value.trim() ? at("second").value : null;
      const from = performance.now();
      const said = await student.ask(at("text").value, second);
      show(student, said, performance.now() - from);
    }).catch(fail);
    return running;
  };
  for (const id of ["text", "second"]) at(id).addEventListener("input", ask);
  at("form").addEventListener("submit", (event) => event.preventDefault());
  at("text").focus();
  await ask();
  document.documentElement.dataset.ready = "yes";
}

start().catch(fail);
