"use strict";
// What people type and what models say is put on the page as text, never as markup.
const place = (id) => document.getElementById(id);
const FIELDS = {
  text: [["text", "Text"]],
  words: [["text", "Sentence"]],
  pair: [["text", "Text"], ["pair", "Second text, for models of pairs (may stay empty)"]],
  question: [["question", "Question"], ["context", "Passage"]],
};
let served = null;

function element(name, content, options = {}) {
  const made = document.createElement(name);
  Object.assign(made, options);
  for (const one of [content].flat()) if (one !== undefined && one !== null) made.append(one);
  return made;
}

async function start() {
  served = await (await fetch("health")).json();
  document.title = served.model + " · bistil";
  place("title").textContent = "Ask " + served.model;
  const beside = served.teacher === null ? "" : ", beside its teacher " + served.teacher;
  place("about").textContent = "A model for " + served.task + beside + ". What you type goes to this server alone.";
  place("token-field").hidden = !served.token;
  for (const [key, label] of FIELDS[served.reads]) {
    const field = element("textarea", null, { id: "field-" + key, spellcheck: false, dir: "auto" });
    place("fields").append(element("label", [label, field]));
  }
  place("fields").querySelector("textarea").focus();
}

function asked() {
  const values = {};
  for (const [key] of FIELDS[served.reads]) values[key] = place("field-" + key).value;
  if (served.reads === "question") return values;
  return values.pair ? values : values.text;
}

function problemOf(answer, status) {
  if (answer === null || answer.detail === undefined) return "The server answered " + status + ".";
  if (typeof answer.detail === "string") return answer.detail;
  return answer.detail.map((one) => one.msg).join("; ");
}

async function ask(path, input) {
  const headers = { "content-type": "application/json" };
  if (served.token) headers.authorization = "Bearer " + place("token").value;
  const got = await fetch(path, { method: "POST", headers, body: JSON.stringify({ inputs: [input] }) });
  const answer = await got.json().catch(() => null);
  if (!got.ok) throw new Error(problemOf(answer, got.status));
  return answer;
}

const percent = (share) => (share === null ? "" : (100 * share).toFixed(1) + " %");
const cells = (kind, row) => element("tr", row.map((one) => element(kind, String(one))));
function table(head, rows) {
  return element("div", element("table", [cells("th", head), ...rows.map((row) => cells("td", row))]), { className: "scroll" });
}
function measured(label, share) {
  const row = [element("p", label + ", " + percent(share), { className: "said" })];
  if (share !== null) row.push(element("meter", null, { min: 0, max: 1, value: share }));
  return row;
}

// Offsets count characters; JavaScript counts UTF-16 units.
function marked(text, spans) {
  const characters = Array.from(text), parts = [];
  let done = 0;
  for (const one of spans) {
    parts.push(characters.slice(done, one.start).join(""));
    const label = element("small", one.type);
    parts.push(element("mark", [characters.slice(one.start, one.end).join(""), label], { title: percent(one.confidence) }));
    done = one.end;
  }
  parts.push(characters.slice(done).join(""));
  return element("p", parts, { className: "said", dir: "auto" });
}

function shown(record) {
  if (record.entities !== undefined) return [marked(record.text, record.entities)];
  if (record.tokens !== undefined) {
    return [table(["word", "tag", ""], record.tokens.map((word, i) => [word, record.labels[i], percent(record.confidences[i])]))];
  }
  if (record.sentences !== undefined) {
    return record.sentences.map((one) => table(["", "word", "head", "relation"],
      one.tokens.map((word, i) => [i + 1, word, one.heads[i] === 0 ? "root" : one.heads[i] + " " + one.tokens[one.heads[i] - 1], one.relations[i]])));
  }
  if (record.embedding !== undefined) {
    if (record.embedding === null) return [element("p", "No vector of an empty text.", { className: "said" })];
    const first = record.embedding.slice(0, 6).map((one) => one.toFixed(3)).join(", ");
    return [element("p", record.embedding.length + " numbers: " + first + " …", { className: "said" })];
  }
  if (record.answer !== undefined) return measured(record.answer === null ? "No answer" : record.answer, record.confidence);
  if (record.labels !== undefined) {
    if (record.labels.length === 0) return [element("p", "No label", { className: "said" })];
    return record.labels.flatMap((label, i) => measured(label, record.confidences[i]));
  }
  return measured(record.label === null ? "No label" : record.label, record.confidence);
}

function show(role, answer) {
  const head = element("div", [
    element("h2", answer.model), element("span", (1000 * answer.seconds).toFixed(1) + " ms", { className: "time" }),
  ], { className: "head" });
  place("answers").append(element("section", [head, ...shown(answer.predictions[0])], { className: "answer " + role }));
}

// What was said, without how sure the model is of it.
function said(record) {
  return JSON.stringify(record, (key, value) => (key === "confidence" || key === "confidences" || key === "embedding" ? undefined : value));
}

async function submit() {
  place("ask").disabled = true;
  place("problem").hidden = place("same").hidden = true;
  place("answers").replaceChildren();
  try {
    const input = asked();
    // One after the other: side by side they would share the processor.
    const model = await ask("predict", input);
    show("model", model);
    if (served.teacher !== null) {
      const teacher = await ask("teacher/predict", input);
      show("teacher", teacher);
      const agree = said(model.predictions[0]) === said(teacher.predictions[0]);
      const ratio = (teacher.seconds / model.seconds).toFixed(1);
      const both = served.reads === "text" ? "" : agree ? "Both say the same. " : "They say different things. ";
      place("same").textContent = both + "The teacher took " + ratio + " times as long.";
      place("same").hidden = false;
    }
  } catch (error) {
    place("problem").textContent = error.message;
    place("problem").hidden = false;
  }
  place("ask").disabled = false;
}

place("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
place("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); if (!place("ask").disabled) submit(); }
});
start().catch(() => { place("problem").textContent = "The server does not answer."; place("problem").hidden = false; });
