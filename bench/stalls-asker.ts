// Takes HAProxy's place in the bench `stalls`: asks for sasori's health every ten milliseconds, whether the last question was
// answered or not, and writes a line for each answer that took long, and for the first one of a sasori that was just started:
// when it came (ms since the epoch), and after how long.
// Run as a program: node stalls-asker.js URL FILE.

import { openSync, writeSync } from "node:fs";
import http from "node:http";

const EVERY_MS = 10;
const LATE_MS = 4;

const [, , url = "", file = ""] = process.argv;
const out = openSync(file, "a");
const agent = new http.Agent({ keepAlive: true, maxSockets: 50 });

let isUp = false;

setInterval(() => {
  const began = performance.now();
  const done = () => {
    const took = performance.now() - began;
    if (took > LATE_MS || !isUp) writeSync(out, `${Date.now()} ${took.toFixed(1)}\n`);
    isUp = true;
  };
  const question = http.get(url, { agent }, (answer) => answer.resume().once("end", done));
  question.on("error", () => {
    isUp = false; // sasori is starting, or stopping.
  });
}, EVERY_MS);
