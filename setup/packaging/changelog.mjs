// `PACKAGE_MAINTAINER="NAME <MAIL>" node setup/packaging/changelog.mjs deb|rpm|notes VERSION`: CHANGELOG.md in the form of a Debian or an rpm changelog, or
// the part of it that is news in VERSION. What stands under "Unreleased" is in what is built now, so it is VERSION's.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const [form, version] = process.argv.slice(2);
const who = process.env.PACKAGE_MAINTAINER;

/** "## 0.1.0" and what follows it: paragraphs and "- items", both wrapped. */
const sections = readFileSync(`${root}/CHANGELOG.md`, "utf8")
  .split(/^## /m)
  .slice(1)
  .map((text) => {
    const [heading = "", ...lines] = text.trimEnd().split("\n");
    return { name: heading.split(" ")[0] ?? "", body: lines.join("\n").trim() };
  });
const [first, ...others] = sections;
const isBuilt = ({ name }) => name === "Unreleased" || name === version;
const built = sections.filter((section) => isBuilt(section) && section.body !== "");
if (first === undefined || built.length === 0) throw new Error(`CHANGELOG.md says nothing about ${version}`);
const news = { name: version, body: built.map(({ body }) => body).join("\n\n") };
const all = [news, ...others.filter((section) => !isBuilt(section))];

const check = "Check what you have downloaded, in its folder: `sha256sum -c --ignore-missing SHA256SUMS`";
if (form === "notes") process.stdout.write(`# sasori ${version}\n\n${check}\n\n${news.body}\n`);
else process.stdout.write(all.map(form === "deb" ? debian : rpm).join("\n"));

function debian({ name, body }) {
  const items = itemsOf(body).map((item) => wrap(item, 76, "  * ", "    "));
  return `sasori (${packaged(name)}) unstable; urgency=medium\n\n${items.join("\n")}\n\n -- ${who}  ${dateOf(name).toUTCString().replace("GMT", "+0000")}\n`;
}

function rpm({ name, body }) {
  const [day, date, month, year] = dateOf(name).toUTCString().replace(",", "").split(" ");
  const items = itemsOf(body).map((item) => wrap(item.replaceAll("%", "%%"), 76, "- ", "  "));
  return `* ${day} ${month} ${date} ${year} ${who} - ${packaged(name)}-1\n${items.join("\n")}\n`;
}

/** A release candidate is older than its release. */
function packaged(name) {
  return name.replace("-", "~");
}

/** Without Markdown's headings and marks. */
function itemsOf(body) {
  return body
    .replace(/^###.*$/gm, "")
    .replaceAll("**", "")
    .split(/\n(?=- )|\n\n+/)
    .map((item) => plain(item.replace(/^- /, "")))
    .filter((item) => item !== "");
}

/** Without Markdown's marks; a heading says what the items behind it are. */
function plain(item) {
  return item
    .replace(/^#+ (.*)$/, "$1:")
    .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/`|\*\*|\*(?=\w)|(?<=\w)\*/g, "")
    .replace(/\s+/g, " ")
    .trim();
}

/** The day of its tag, or, before there is one, of the last commit. */
function dateOf(name) {
  for (const commit of [`v${name}`, "HEAD"]) {
    try {
      const asked = ["log", "-1", "--format=%ct", commit];
      return new Date(
        1000 * Number(execFileSync("git", asked, { cwd: root, stdio: ["ignore", "pipe", "ignore"] })),
      );
    } catch {
      // No such tag, or no clone: the archive of npm has no history.
    }
  }
  return new Date(1000 * Number(process.env.SOURCE_DATE_EPOCH ?? Math.floor(Date.now() / 1000)));
}

function wrap(text, width, head, indent) {
  const lines = [];
  let line = head;
  for (const word of text.split(" ")) {
    if (line.length + word.length > width && line.trim() !== "" && line !== head) {
      lines.push(line.trimEnd());
      line = indent;
    }
    line += `${word} `;
  }
  return [...lines, line.trimEnd()].join("\n");
}
