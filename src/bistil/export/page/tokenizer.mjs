// What a tokenizer.json says, done as the Rust library `tokenizers` does it: the same ids, and the same offsets.
//
// Offsets count characters (code points) of the text, as Python does. A text on its way through the normalisers is a
// `Piece`: its characters, and for each of them the place in the text that it came from. How normalisers pass these
// places on is that of tokenizers (NormalizedString::transform), and so is what each part does.

const SPACE = /^\p{White_Space}$/u;
const PRIVATE = /^\p{Co}$/u;
const NUMERIC = /^\p{N}$/u;
const CHINESE = /^[\u4E00-\u9FFF\u3400-\u4DBF\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\uF900-\uFAFF\u{2F800}-\u{2FA1F}]$/u;
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const UTF8 = new TextEncoder();
// What an unknown piece costs beyond the least likely one (tokenizers, K_UNK_PENALTY).
const UNKNOWN_PENALTY = 10;

/** Characters of a text on its way to tokens. `base` is where the piece begins in the text. */
class Piece {
  constructor(chars, starts, ends, base, id = null) {
    Object.assign(this, { chars, starts, ends, base, id });
  }

  static of(text) {
    const chars = Array.from(text);
    return new Piece(chars, chars.map((_, i) => i), chars.map((_, i) => i + 1), 0);
  }

  get text() {
    return this.chars.join("");
  }

  slice(start, end, id = null) {
    const base = start < this.starts.length ? this.starts[start] : this.base;
    return new Piece(this.chars.slice(start, end), this.starts.slice(start, end), this.ends.slice(start, end), base, id);
  }

  /** Replace all characters. A change of 0 takes the place of one, 1 is new, -n takes the place of one and n more. */
  transform(changes, skipped = 0) {
    const chars = [], starts = [], ends = [];
    let at = skipped;
    for (const [char, change] of changes) {
      const from = change > 0 ? at - 1 : at;
      chars.push(char);
      starts.push(from < 0 ? this.base : this.starts[from]);
      ends.push(from < 0 ? this.base : this.ends[from]);
      if (change <= 0) at += 1 - change;
    }
    Object.assign(this, { chars, starts, ends });
  }

  filter(keep) {
    const kept = this.chars.map((char, i) => [char, i]).filter(([char]) => keep(char));
    this.chars = kept.map(([char]) => char);
    this.starts = kept.map(([, i]) => this.starts[i]);
    this.ends = kept.map(([, i]) => this.ends[i]);
  }

  prepend(text) {
    if (!this.chars.length) return;
    const [first, ...others] = this.chars;
    const front = Array.from(text, (char, i) => [char, i ? 1 : 0]);
    this.transform([...front, [first, 1], ...others.map((char) => [char, 0])]);
  }

  /** Replace what a pattern matches; what is new stands where the last character of the match stood. */
  replace(matches, text) {
    const content = Array.from(text);
    const chars = [], starts = [], ends = [];
    for (const [start, end, matched] of matches) {
      if (!matched) {
        for (let i = start; i < end; i++) {
          chars.push(this.chars[i]);
          starts.push(this.starts[i]);
          ends.push(this.ends[i]);
        }
        continue;
      }
      for (const char of content) {
        chars.push(char);
        starts.push(end < 1 ? this.base : this.starts[end - 1]);
        ends.push(end < 1 ? this.base : this.ends[end - 1]);
      }
    }
    Object.assign(this, { chars, starts, ends });
  }

  /** Split at matches: [start, end, whether it matched]. */
  split(matches, behaviour) {
    let ranges = [];
    let before = false;
    const merged = (found, own) => {
      before = false;
      for (const [start, end, matched] of found) {
        if (matched && !before && ranges.length) own(ranges.at(-1), start, end);
        else ranges.push([start, end]);
        before = matched;
      }
    };
    if (behaviour === "Isolated") ranges = matches.map(([start, end]) => [start, end]);
    else if (behaviour === "Removed") ranges = matches.filter(([, , matched]) => !matched);
    else if (behaviour === "MergedWithPrevious") merged(matches, (last, _, end) => (last[1] = end));
    else if (behaviour === "MergedWithNext") {
      merged([...matches].reverse(), (last, start) => (last[0] = start));
      ranges.reverse();
    } else if (behaviour === "Contiguous") {
      for (const [i, [start, end, matched]] of matches.entries()) {
        if (i && matches[i - 1][2] === matched) ranges.at(-1)[1] = end;
        else ranges.push([start, end]);
      }
    } else throw new Error(`an unknown way to split: ${behaviour}`);
    return ranges.filter(([start, end]) => end > start).map(([start, end]) => this.slice(start, end));
  }
}

/** Matches of a test of single characters, each one by itself, as `Piece.split` wants them. */
function charMatches(piece, test) {
  const found = [];
  let last = 0;
  piece.chars.forEach((char, i) => {
    if (!test(char)) return;
    if (i > last) found.push([last, i, false]);
    found.push([i, i + 1, true]);
    last = i + 1;
  });
  if (piece.chars.length > last) found.push([last, piece.chars.length, false]);
  return found;
}

/** Matches of a regular expression with the flag g. */
function regexMatches(piece, regex) {
  const text = piece.text;
  // Places in JavaScript count halves of characters beyond 16 bits.
  const place = new Map();
  let units = 0;
  piece.chars.forEach((char, i) => {
    place.set(units, i);
    units += char.length;
  });
  place.set(units, piece.chars.length);
  const found = [];
  let last = 0;
  for (const match of text.matchAll(regex)) {
    if (!match[0]) continue;
    const start = place.get(match.index), end = place.get(match.index + match[0].length);
    if (start > last) found.push([last, start, false]);
    found.push([start, end, true]);
    last = end;
  }
  if (piece.chars.length > last) found.push([last, piece.chars.length, false]);
  return found;
}

/** A pattern of Rust's, "String" or "Regex", as a regular expression of JavaScript. */
function regexOf(pattern) {
  if (pattern.String !== undefined) return new RegExp(quoted(pattern.String), "gu");
  let inside = false, made = "";
  const source = pattern.Regex;
  for (let i = 0; i < source.length; i++) {
    const char = source[i];
    if (char !== "\\") {
      if (char === "[") inside = true;
      if (char === "]") inside = false;
      made += char;
      continue;
    }
    const next = source[++i];
    if (next === "x" && source[i + 1] === "{") made += "\\u";
    else if (next === "s") made += "\\p{White_Space}";
    else if (next === "S") made += "\\P{White_Space}";
    else if (next === "d") made += "\\p{Nd}";
    else if (next === "w") made += inside ? "\\p{L}\\p{M}\\p{N}\\p{Pc}" : "[\\p{L}\\p{M}\\p{N}\\p{Pc}]";
    else if (/[\p{L}\p{N}^$\\.*+?()[\]{}|\/-]/u.test(next)) made += `\\${next}`;
    else made += next;
  }
  return new RegExp(made, "gu");
}

function quoted(text) {
  return text.replace(/[\\^$.*+?()[\]{}|\/]/g, "\\$&");
}

// --- normalisers

function normaliser(part, unicode) {
  if (!part) return () => {};
  switch (part.type) {
    case "Sequence": {
      const all = part.normalizers.map((one) => normaliser(one, unicode));
      return (piece) => all.forEach((one) => one(piece));
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
      return (piece) => piece.transform(normalForm(piece.chars, part.type, unicode));
    case "Replace": {
      const regex = regexOf(part.pattern);
      return (piece) => piece.replace(regexMatches(piece, regex), part.content);
    }
    case "Lowercase":
      return lowercase;
    case "Strip":
      return (piece) => {
        let start = 0, end = piece.chars.length;
        if (part.strip_left ?? part.left) while (start < end && SPACE.test(piece.chars[start])) start++;
        if (part.strip_right ?? part.right) while (end > start && SPACE.test(piece.chars[end - 1])) end--;
        Object.assign(piece, { ...piece.slice(start, end), base: piece.base });
      };
    case "StripAccents":
      return (piece) => piece.filter((char) => !unicode.marks.has(char));
    case "Prepend":
      return (piece) => piece.prepend(part.prepend);
    case "BertNormalizer":
      return (piece) => bert(piece, part, unicode);
    case "Precompiled":
      return precompiled(part.precompiled_charsmap);
    default:
      throw new Error(`a normaliser of an unknown kind: ${part.type}`);
  }
}

function lowercase(piece) {
  piece.transform(piece.chars.flatMap((char) => Array.from(char.toLowerCase(), (own, i) => [own, i ? 1 : 0])));
}

function bert(piece, part, unicode) {
  if (part.clean_text) {
    const control = (char) => unicode.controls.has(char) || PRIVATE.test(char);
    const kept = (char) => "\t\n\r".includes(char) || !(char === "\0" || char === "\uFFFD" || control(char));
    piece.filter(kept);
    piece.chars = piece.chars.map((char) => (SPACE.test(char) ? " " : char));
  }
  if (part.handle_chinese_chars) {
    piece.transform(piece.chars.flatMap((char) => (CHINESE.test(char) ? [[" ", 0], [char, 1], [" ", 1]] : [[char, 0]])));
  }
  if (part.strip_accents ?? part.lowercase) {
    piece.transform(normalForm(piece.chars, "NFD", unicode));
    piece.filter((char) => !unicode.accents.has(char));
  }
  if (part.lowercase) lowercase(piece);
}

/** A normal form of Unicode with changes, as the crate unicode-normalization-alignments gives them. */
function normalForm(chars, form, unicode) {
  const table = form.includes("K") ? unicode.compatible : unicode.canonical;
  const parts = (char) => {
    if (char >= "\uAC00" && char <= "\uD7A3") return Array.from(char.normalize("NFD"));
    return table.get(char) ?? [char];
  };
  const class_of = (char) => unicode.classes.get(char) ?? 0;
  // Marks behind a letter are put into the order of their classes; what is equal stays in order.
  const found = [];
  let marks = [];
  const settle = () => {
    found.push(...marks.sort((a, b) => a[2] - b[2]));
    marks = [];
  };
  for (const char of chars) {
    parts(char).forEach((own, i) => {
      const entry = [own, i ? 1 : 0, class_of(own)];
      if (entry[2]) marks.push(entry);
      else {
        settle();
        found.push(entry);
      }
    });
  }
  settle();
  return form.endsWith("D") ? found : composed(found, unicode);
}

function composed(parts, unicode) {
  const found = [];
  let base = null, waiting = [], last = null;
  const flush = () => {
    if (base) found.push(base);
    found.push(...waiting);
    waiting = [];
    last = null;
  };
  for (const [char, change, own] of parts) {
    if (!base) {
      if (own) found.push([char, change]);
      else base = [char, change];
      continue;
    }
    const blocked = last !== null && last >= own;
    const both = blocked ? null : pair(base[0], char, unicode);
    if (both) {
      base = [both, base[1] + change - 1];
    } else if (own === 0) {
      flush();
      base = [char, change];
    } else {
      waiting.push([char, change]);
      last = own;
    }
  }
  flush();
  return found;
}

/** The one character that two compose to, or null. */
function pair(first, second, unicode) {
  const both = (first + second).normalize("NFC");
  if (Array.from(both).length !== 1) return null;
  // What the library does not know how to take apart, it does not put together.
  return (both >= "\uAC00" && both <= "\uD7A3") || unicode.canonical.has(both) ? both : null;
}

/** SentencePiece's map of characters: a double array trie of UTF-8, and the texts that it leads to. */
function precompiled(base64) {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const size = view.getUint32(0, true);
  const units = new Uint32Array(size / 4);
  for (let i = 0; i < units.length; i++) units[i] = view.getUint32(4 + 4 * i, true);
  const texts = bytes.subarray(4 + size);
  const decoder = new TextDecoder();
  const offset = (unit) => (unit >>> 10) << ((unit & 512) >>> 6);
  // The shortest beginning that the map knows decides, as in spm_precompiled.
  const known = (text) => {
    let node = offset(units[0]);
    for (const byte of UTF8.encode(text)) {
      if (byte === 0) return null;
      node ^= byte;
      const unit = units[node];
      if (unit === undefined || (unit & 0x800000ff) >>> 0 !== byte) return null;
      node ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const place = units[node] & 0x7fffffff;
        return decoder.decode(texts.subarray(place, texts.indexOf(0, place)));
      }
    }
    return null;
  };
  const graphemes = new Intl.Segmenter("en", { granularity: "grapheme" });
  return (piece) => {
    const changes = [];
    const put = (old, now) => {
      const chars = Array.from(now), more = chars.length - Array.from(old).length;
      const first = changes.length;
      changes.push(...chars.map((char) => [char, 0]));
      for (let i = Math.max(first, changes.length - more); more > 0 && i < changes.length; i++) changes[i][1] = 1;
      if (more < 0 && changes.length) changes.at(-1)[1] += more;
    };
    for (const { segment } of graphemes.segment(piece.text)) {
      const whole = UTF8.encode(segment).length < 6 ? known(segment) : null;
      if (whole !== null) {
        put(segment, whole);
        continue;
      }
      for (const char of segment) {
        const own = known(char);
        if (own !== null) put(char, own);
        else changes.push([char, 0]);
      }
    }
    piece.transform(changes);
  };
}

// --- pre-tokenisers

function preTokeniser(part, unicode) {
  if (!part) return (pieces) => pieces;
  const each = (own) => (pieces) => pieces.flatMap((piece) => (piece.id === null ? own(piece) : [piece]));
  switch (part.type) {
    case "Sequence": {
      const all = part.pretokenizers.map((one) => preTokeniser(one, unicode));
      return (pieces) => all.reduce((found, one) => one(found), pieces);
    }
    case "Metaspace": {
      const mark = part.replacement, scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? "never" : "always");
      return each((piece) => {
        piece.chars = piece.chars.map((char) => (char === " " ? mark : char));
        const first = scheme === "always" || (scheme === "first" && piece.starts[0] === 0);
        if (first && piece.chars[0] !== mark) piece.prepend(mark);
        if (part.split === false) return [piece];
        return piece.split(charMatches(piece, (char) => char === mark), "MergedWithNext");
      });
    }
    case "WhitespaceSplit":
      return each((piece) => piece.split(charMatches(piece, (char) => SPACE.test(char)), "Removed"));
    case "Whitespace": {
      const word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200C\\u200D";
      const regex = new RegExp(`[${word}]+|[^${word}\\p{White_Space}]+`, "gu");
      return each((piece) => piece.split(inverted(regexMatches(piece, regex)), "Removed"));
    }
    case "BertPreTokenizer":
      return each((piece) =>
        piece
          .split(charMatches(piece, (char) => SPACE.test(char)), "Removed")
          .flatMap((own) => own.split(charMatches(own, (char) => unicode.punctuation.has(char)), "Isolated")),
      );
    case "Punctuation":
      return each((piece) => piece.split(charMatches(piece, (char) => unicode.punctuation.has(char)), part.behavior));
    case "Digits":
      return each((piece) =>
        piece.split(charMatches(piece, (char) => NUMERIC.test(char)), part.individual_digits ? "Isolated" : "Contiguous"),
      );
    case "Split": {
      const regex = regexOf(part.pattern);
      return each((piece) => {
        const matches = regexMatches(piece, regex);
        return piece.split(part.invert ? inverted(matches) : matches, part.behavior);
      });
    }
    case "ByteLevel": {
      const regex = regexOf({ Regex: GPT2 });
      return each((piece) => {
        if (part.add_prefix_space && piece.chars[0] !== " ") piece.prepend(" ");
        const own = part.use_regex === false ? [piece] : piece.split(regexMatches(piece, regex), "Isolated");
        for (const one of own) {
          one.transform(one.chars.flatMap((char) => Array.from(UTF8.encode(char), (b, i) => [BYTES[b], i ? 1 : 0])));
        }
        return own;
      });
    }
    default:
      throw new Error(`a pre-tokeniser of an unknown kind: ${part.type}`);
  }
}

function inverted(matches) {
  return matches.map(([start, end, matched]) => [start, end, !matched]);
}

/** Bytes as visible characters, as GPT-2 writes them. */
const BYTES = (() => {
  const shown = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(shown(byte) ? byte : next++));
})();

// --- models: characters to [id, first character, character behind the last one]

function modelOf(part) {
  switch (part.type) {
    case "Unigram":
      return unigram(part);
    case "WordPiece":
      return wordPiece(part);
    case "BPE":
      return bytePairs(part);
    case "WordLevel":
      return (chars) => [[part.vocab[chars.join("")] ?? part.vocab[part.unk_token], 0, chars.length]];
    default:
      throw new Error(`a model of an unknown kind: ${part.type}`);
  }
}

const byteName = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;

function unigram(part) {
  const ids = new Map(), scores = part.vocab.map(([, score]) => score);
  part.vocab.forEach(([piece], id) => ids.set(piece, id));
  const longest = part.vocab.reduce((most, [piece]) => Math.max(most, piece.length), 1);
  const least = scores.reduce((a, b) => Math.min(a, b), Infinity);
  const unknown = least - UNKNOWN_PENALTY;
  return (chars) => {
    const size = chars.length;
    const best = new Float64Array(size + 1), from = new Int32Array(size + 1).fill(-1), own = new Int32Array(size + 1);
    for (let start = 0; start < size; start++) {
      let single = false, piece = "";
      for (let end = start + 1; end <= size; end++) {
        piece += chars[end - 1];
        if (piece.length > longest) break;
        const id = ids.get(piece);
        if (id === undefined) continue;
        const score = scores[id] + best[start];
        if (from[end] < 0 || score > best[end]) [best[end], from[end], own[end]] = [score, start, id];
        if (end === start + 1) single = true;
      }
      if (!single) {
        const score = unknown + best[start];
        const end = start + 1;
        if (from[end] < 0 || score > best[end]) [best[end], from[end], own[end]] = [score, start, part.unk_id];
      }
    }
    const pieces = [];
    for (let end = size; end > 0; end = from[end]) {
      const next = pieces.at(-1);
      // Unknown neighbours are one.
      if (own[end] === part.unk_id && next && next[2] && next[0] === end) next[0] = from[end];
      else pieces.push([from[end], end, own[end] === part.unk_id]);
    }
    return pieces.reverse().flatMap(([start, end]) => {
      const text = chars.slice(start, end).join("");
      const id = ids.get(text);
      if (id !== undefined) return [[id, start, end]];
      if (part.byte_fallback) {
        const bytes = Array.from(UTF8.encode(text), (byte) => ids.get(byteName(byte)));
        if (bytes.every((one) => one !== undefined)) return bytes.map((one) => [one, start, end]);
      }
      return [[part.unk_id, start, end]];
    });
  };
}

function wordPiece(part) {
  const ids = new Map(Object.entries(part.vocab));
  const prefix = part.continuing_subword_prefix ?? "##";
  const unknown = ids.get(part.unk_token);
  return (chars) => {
    if (chars.length > (part.max_input_chars_per_word ?? 100)) return [[unknown, 0, chars.length]];
    const found = [];
    for (let start = 0; start < chars.length; ) {
      let end = chars.length, id;
      for (; end > start; end--) {
        id = ids.get((start ? prefix : "") + chars.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return [[unknown, 0, chars.length]];
      found.push([id, start, end]);
      start = end;
    }
    return found;
  };
}

function bytePairs(part) {
  const ids = new Map(Object.entries(part.vocab));
  const prefix = part.continuing_subword_prefix ?? "", suffix = part.end_of_word_suffix ?? "";
  const ranks = new Map();
  part.merges.forEach((merge, rank) => {
    const [left, right] = Array.isArray(merge) ? merge : merge.split(" ");
    const both = ids.get(left + (right.startsWith(prefix) ? right.slice(prefix.length) : right));
    ranks.set(`${ids.get(left)} ${ids.get(right)}`, [rank, both]);
  });
  const unknown = part.unk_token == null ? undefined : ids.get(part.unk_token);
  return (chars) => {
    if (part.ignore_merges) {
      const whole = ids.get(chars.join(""));
      if (whole !== undefined) return [[whole, 0, chars.length]];
    }
    let found = [], open = null;
    chars.forEach((char, i) => {
      const text = (i ? prefix : "") + char + (i === chars.length - 1 ? suffix : "");
      const id = ids.get(text);
      const bytes = id === undefined && part.byte_fallback ? Array.from(UTF8.encode(char), (b) => ids.get(byteName(b))) : [];
      if (id !== undefined || (bytes.length && bytes.every((one) => one !== undefined))) {
        found.push(...(id !== undefined ? [id] : bytes).map((one) => [one, i, i + 1]));
        open = null;
      } else if (unknown !== undefined) {
        if (open && part.fuse_unk) open[2] = i + 1;
        else found.push((open = [unknown, i, i + 1]));
      }
    });
    for (;;) {
      let best = null, at = -1;
      for (let i = 0; i + 1 < found.length; i++) {
        const merge = ranks.get(`${found[i][0]} ${found[i + 1][0]}`);
        if (merge && (!best || merge[0] < best[0])) [best, at] = [merge, i];
      }
      if (!best) return found;
      found.splice(at, 2, [best[1], found[at][1], found[at + 1][2]]);
    }
  };
}

// --- added tokens

function addedTokens(tokens, normalise) {
  const by = new Map();
  for (const token of tokens) {
    let text = token.content;
    if (normalise) {
      const piece = Piece.of(text);
      normalise(piece);
      text = piece.text;
    }
    if (text) by.set(text, token);
  }
  if (!by.size) return (piece) => [piece];
  const longestFirst = [...by.keys()].sort((a, b) => b.length - a.length);
  const regex = new RegExp(longestFirst.map(quoted).join("|"), "gu");
  const letter = /^[\p{L}\p{M}\p{N}\p{Pc}]$/u;
  return (piece) => {
    const found = [];
    let last = 0;
    for (let [start, end, matched] of regexMatches(piece, regex)) {
      if (!matched) continue;
      const token = by.get(piece.chars.slice(start, end).join(""));
      const inWord = (char) => char !== undefined && letter.test(char);
      if (token.single_word && (inWord(piece.chars[start - 1]) || inWord(piece.chars[end]))) continue;
      if (token.lstrip) while (start > last && SPACE.test(piece.chars[start - 1])) start--;
      if (token.rstrip) while (end < piece.chars.length && SPACE.test(piece.chars[end])) end++;
      if (start > last) found.push(piece.slice(last, start));
      found.push(piece.slice(start, end, token.id));
      last = end;
    }
    if (piece.chars.length > last) found.push(piece.slice(last, piece.chars.length));
    return found;
  };
}

// --- what post-processors do to offsets; special tokens are put around by whoever asks

function trimmers(part) {
  if (!part) return [];
  if (part.type === "Sequence") return part.processors.flatMap(trimmers);
  return ["ByteLevel", "RobertaProcessing"].includes(part.type) && part.trim_offsets ? [part.add_prefix_space] : [];
}

export class Tokenizer {
  /**
   * @param definition what tokenizer.json holds.
   * @param unicode tables of characters (bistil.export.browser.unicode_tables).
   */
  constructor(definition, unicode) {
    const classes = new Map();
    for (const [own, chars] of Object.entries(unicode.classes)) for (const char of chars) classes.set(char, Number(own));
    const table = (entries) => new Map(Object.entries(entries).map(([char, to]) => [char, Array.from(to)]));
    const canonical = table(unicode.canonical);
    const known = { classes, canonical, compatible: new Map([...canonical, ...table(unicode.compatible)]) };
    for (const set of ["punctuation", "marks", "accents", "controls"]) known[set] = new Set(unicode[set]);
    this.normalise = normaliser(definition.normalizer, known);
    this.preTokenise = preTokeniser(definition.pre_tokenizer, known);
    this.model = modelOf(definition.model);
    const added = definition.added_tokens;
    this.raw = addedTokens(added.filter((one) => !one.normalized));
    this.late = addedTokens(added.filter((one) => one.normalized), this.normalise);
    this.trimmers = trimmers(definition.post_processor);
    this.texts = this.trimmers.length ? tokenTexts(definition) : null;
  }

  /** Ids and offsets [start, end] of a text's tokens, without special tokens around it. */
  encode(text) {
    const pieces = this.raw(Piece.of(text.toWellFormed())).flatMap((piece) => {
      if (piece.id !== null) return [piece];
      this.normalise(piece);
      return this.late(piece);
    });
    const ids = [], offsets = [];
    for (const piece of this.preTokenise(pieces)) {
      if (!piece.chars.length) continue;
      const found = piece.id === null ? this.model(piece.chars) : [[piece.id, 0, piece.chars.length]];
      for (const [id, start, end] of found) {
        ids.push(id);
        offsets.push([piece.starts[start], piece.ends[end - 1]]);
      }
    }
    for (const prefixed of this.trimmers) this.#trim(ids, offsets, prefixed);
    return { ids, offsets };
  }

  #trim(ids, offsets, prefixed) {
    const blank = (char) => char === BYTES[32] || SPACE.test(char);
    ids.forEach((id, i) => {
      const chars = Array.from(this.texts.get(id) ?? "");
      let leading = chars.findIndex((char) => !blank(char));
      leading = leading < 0 ? chars.length : leading;
      const behind = chars.length - 1 - chars.findLastIndex((char) => !blank(char));
      const own = offsets[i];
      if (leading) {
        if ((i === 0 || own[0] === 0) && prefixed) leading -= 1;
        own[0] = Math.min(own[0] + leading, own[1]);
      }
      if (behind && own[1] >= behind) own[1] = Math.max(own[1] - behind, own[0]);
    });
  }
}

function tokenTexts(definition) {
  const vocab = definition.model.vocab;
  const pairs = Array.isArray(vocab) ? vocab.map(([text], id) => [id, text]) : Object.entries(vocab).map(([t, i]) => [i, t]);
  return new Map([...pairs, ...definition.added_tokens.map((one) => [one.id, one.content])]);
}
