// A student in the browser: texts to tokens, tokens through onnxruntime-web, outputs to labels, as bistil does it in
// Python. Everything comes from the folder that this module lies in; nothing is sent anywhere.
//
//   import { load } from "./student.mjs";
//   const student = await load();
//   const { entities } = await student.ask("a sentence of yours");

import { Tokenizer } from "./tokenizer.mjs";

const HERE = new URL(".", import.meta.url);
const ALONE = String.raw`[\p{L}&&[\p{Script=Han}\p{Script=Hiragana}]]`;
// Words of running text, as bistil.tasks.words splits it.
const WORD = new RegExp(
  String.raw`${ALONE}\p{M}*` +
    String.raw`|[[\p{L}\p{N}]--${ALONE}](?:[[\p{L}\p{M}\p{N}\p{Cf}]--${ALONE}]|['’\-](?=[\p{L}\p{N}]))*` +
    String.raw`|\P{White_Space}`,
  "gv",
);
const MOST_THREADS = 4;

/** Words of a text: [start, end, first unit, unit behind the last], in characters and in JavaScript's units. */
export function wordPlaces(text) {
  const places = [];
  let chars = 0, units = 0;
  for (const match of text.matchAll(WORD)) {
    chars += Array.from(text.slice(units, match.index)).length;
    const size = Array.from(match[0]).length;
    units = match.index + match[0].length;
    places.push([chars, chars + size, match.index, units]);
    chars += size;
  }
  return places;
}

/** Texts to tokens: all of a student that needs no model. */
export class Encoder {
  constructor(values, definition) {
    this.values = values;
    this.tokenizer = new Tokenizer(definition, values.unicode);
    this.markers = new Set(values.markers);
  }

  /** One input per window of a sentence of words, with the places of the first subwords of its own words. */
  words(words) {
    const [before, after] = this.values.frame;
    const room = this.values.max_length - before.length - after.length;
    const subwords = this.#subwords(words, room);
    return windows(subwords.map((own) => own.length), room, Math.floor(room / 4)).map(([start, stop, first, last]) => {
      const ids = [...before], targets = [];
      for (let word = start; word < stop; word++) {
        const own = subwords[word];
        const text = own.findIndex((id) => !this.markers.has(id));
        if (word >= first && word < last) targets.push([ids.length + Math.max(text, 0), word]);
        ids.push(...own);
      }
      return { ids: [...ids, ...after], targets };
    });
  }

  /** The input of a text, or of a pair of texts; the longer one is cut first. */
  texts(text, second = null) {
    const template = this.values.templates[second === null ? 0 : 1];
    const parts = { A: this.tokenizer.encode(text).ids, B: second === null ? [] : this.tokenizer.encode(second).ids };
    const room = this.values.max_length - template.filter(([own]) => typeof own === "number").length;
    const whole = parts.A.length + parts.B.length;
    if (whole > room && second === null) parts.A = parts.A.slice(0, room);
    else if (whole > room) {
      let [short, long] = [parts.A.length, parts.B.length].sort((a, b) => a - b);
      const swapped = parts.A.length > parts.B.length;
      long = short > room ? short : Math.max(short, room - short);
      if (short + long > room) [short, long] = [Math.floor(room / 2), Math.floor(room / 2) + (room % 2)];
      parts.A = parts.A.slice(0, swapped ? long : short);
      parts.B = parts.B.slice(0, swapped ? short : long);
    }
    const ids = [], types = [];
    for (const [own, type] of template) {
      const tokens = typeof own === "number" ? [own] : parts[own];
      ids.push(...tokens);
      types.push(...tokens.map(() => type));
    }
    return { ids, types, truncated: whole > room };
  }

  /** Ids of each word's subwords, between 1 and `room` (tasks.words._subwords). */
  #subwords(words, room) {
    const found = this.#sharedOut(words) ?? words.map((word) => this.tokenizer.encode(word).ids);
    return found.map((own) => (own.length ? own.slice(0, room) : [this.values.unknown]));
  }

  /** Tokens of the running text by word; null where a word's text is all in others' tokens. */
  #sharedOut(words) {
    const { ids, offsets } = this.tokenizer.encode(words.join(" "));
    const found = words.map(() => []), reach = words.map(() => 0), sizes = words.map((word) => Array.from(word).length);
    let at = -1;
    const ends = sizes.map((size) => (at += size + 1));
    let word = 0;
    ids.forEach((id, i) => {
      const [start, end] = offsets[i];
      while (word > 0 && ends[word - 1] > start) word--;
      while (word < words.length - 1 && ends[word] <= start) word++;
      found[word].push(id);
      reach[word] = Math.max(reach[word], end);
    });
    let furthest = 0;
    for (const [i, own] of found.entries()) {
      if (!own.length && furthest > ends[i] - sizes[i]) return null;
      furthest = Math.max(furthest, reach[i]);
    }
    return found;
  }
}

/** Per window of a text [ids, [position of the first subword, index of the word] ...], to be compared with Python's. */
export function inputsOf(encoder, text) {
  if (!text.trim()) return [];
  if (encoder.values.form === "texts") return [[encoder.texts(text).ids, []]];
  const words = wordPlaces(text).map(([, , first, last]) => text.slice(first, last));
  return encoder.words(words).map(({ ids, targets }) => [ids, targets]);
}

/** Windows [start, stop, first, last] that predict every word once (tasks.words.windows). */
function windows(lengths, room, context) {
  const found = [];
  for (let position = 0; position < lengths.length; ) {
    let start = position, spare = Math.min(context, room - lengths[position]);
    while (start > 0 && lengths[start - 1] <= spare) spare -= lengths[--start];
    let stop = position, used = lengths.slice(start, position).reduce((a, b) => a + b, 0);
    while (stop < lengths.length && used + lengths[stop] <= room) used += lengths[stop++];
    let last = stop;
    spare = context;
    while (stop < lengths.length && last - 1 > position && lengths[last - 1] <= spare) spare -= lengths[--last];
    found.push([start, stop, position, last]);
    position = last;
  }
  return found;
}

/** Spans [type, first, last] of [role, type] per word (tasks.spans.spans). */
function spans(roles) {
  const found = [];
  let begin = 0, previous = "O", type = "";
  for (const [position, [role, kind]] of [...roles, ["O", ""]].entries()) {
    if (previous !== "O" && ("ES".includes(previous) || ["B", "S", "O"].includes(role) || kind !== type)) {
      found.push([type, begin, position - 1]);
      previous = "O";
    }
    if (role !== "O" && previous === "O") begin = position;
    [previous, type] = [role, kind];
  }
  return found;
}

function softmax(row) {
  const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(row, (value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

const indexOfLargest = (row) => row.reduce((best, value, i) => (value > row[best] ? i : best), 0);

export class Student {
  constructor(values, encoder, session, tensor, threads) {
    Object.assign(this, { values, encoder, session, tensor, threads });
  }

  /**
   * What the student says of a text, or of a pair of texts.
   *
   * @returns {tokens, labels, confidences, offsets, entities} of words, or {label or labels, confidences, truncated}.
   */
  async ask(text, second = null) {
    if (!text.trim()) return null;
    return this.values.form === "words" ? this.#tag(text) : this.#classify(text, second);
  }

  async #tag(text) {
    const { labels, roles } = this.values;
    const places = wordPlaces(text);
    const tokens = places.map(([, , first, last]) => text.slice(first, last));
    const said = [], confidences = [], chosen = [];
    for (const { ids, targets } of this.encoder.words(tokens)) {
      const logits = await this.#run(ids);
      for (const [position, word] of targets) {
        const row = logits.subarray(position * labels.length, (position + 1) * labels.length);
        chosen[word] = indexOfLargest(row);
        said[word] = labels[chosen[word]];
        confidences[word] = softmax(row)[chosen[word]];
      }
    }
    const offsets = places.map(([start, end]) => [start, end]);
    const units = places.map(([, , first, last]) => [first, last]);
    const found = { text, tokens, labels: said, confidences, offsets, units };
    if (!roles) return found;
    found.entities = spans(chosen.map((i) => roles[i])).map(([type, first, last]) => {
      const own = confidences.slice(first, last + 1);
      return {
        type,
        text: text.slice(units[first][0], units[last][1]),
        start: offsets[first][0],
        end: offsets[last][1],
        units: [units[first][0], units[last][1]],
        confidence: own.reduce((a, b) => a + b, 0) / own.length,
      };
    });
    return found;
  }

  async #classify(text, second) {
    const { labels, threshold } = this.values;
    const { ids, types, truncated } = this.encoder.texts(text, second);
    const logits = await this.#run(ids, types);
    if (threshold === null) {
      return { text, label: labels[indexOfLargest(logits)], confidences: softmax(logits), truncated };
    }
    const confidences = Array.from(logits, (value) => 1 / (1 + Math.exp(-value)));
    return { text, labels: labels.filter((_, i) => confidences[i] > threshold), confidences, truncated };
  }

  /** Logits of one input, which is padded as in Python: int8 scales depend on what is in a batch. */
  async #run(ids, types = null) {
    const { padding, positions } = this.values;
    const most = Math.ceil(ids.length / padding.multiple) * padding.multiple;
    const size = positions === null ? most : Math.max(ids.length, Math.min(most, positions));
    const given = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types ?? [] };
    const filling = { input_ids: padding.id, attention_mask: 0, token_type_ids: 0 };
    const feeds = {};
    for (const name of this.session.inputNames) {
      const values = new BigInt64Array(size).fill(BigInt(filling[name]));
      given[name].forEach((value, i) => (values[i] = BigInt(value)));
      feeds[name] = new this.tensor("int64", values, [1, size]);
    }
    return (await this.session.run(feeds)).logits.data;
  }
}

/** The bytes of a file of the folder; `progress` is told how many have come. */
async function bytesOf(name, progress) {
  const answer = await fetch(new URL(name, HERE));
  if (!answer.ok) throw new Error(`${name} cannot be fetched: ${answer.status} ${answer.statusText}`);
  const parts = [];
  let size = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    progress?.(value.length);
  }
  const bytes = new Uint8Array(size);
  parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0);
  return bytes;
}

/** What `student.json` says, and texts to tokens: without the model. */
export async function loadEncoder(progress) {
  const [values, definition] = await Promise.all(
    ["student.json", "tokenizer.json"].map(async (name) =>
      JSON.parse(new TextDecoder().decode(await bytesOf(name, progress))),
    ),
  );
  return new Encoder(values, definition);
}

/**
 * The student of this folder.
 *
 * @param threads none: as many as there are cores, up to 4, where the page is isolated from other origins, and else 1.
 * @param progress is told how many bytes more have come.
 */
export async function load({ threads, progress } = {}) {
  const ort = await import("./onnxruntime/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("onnxruntime/", HERE).href;
  const most = Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
  const used = globalThis.crossOriginIsolated ? (threads ?? most) : 1;
  ort.env.wasm.numThreads = used;
  const [encoder, graph] = await Promise.all([loadEncoder(progress), bytesOf("model.onnx", progress)]);
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return new Student(encoder.values, encoder, session, ort.Tensor, used);
}
