// Run with Node.js: the tokens that the page in a folder gives for texts.
//
//   node check.mjs FOLDER < texts.json > inputs.json

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = `${process.argv[2]}/`;
const { Encoder, inputsOf } = await import(new URL("student.mjs", pathToFileURL(folder)));
const [values, definition] = ["student.json", "tokenizer.json"].map((name) => JSON.parse(readFileSync(folder + name)));
const encoder = new Encoder(values, definition);
process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0)).map((text) => inputsOf(encoder, text))));
