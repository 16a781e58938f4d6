// Puts a file of this host's configuration in its place.
// Promises: what was there before stays beside it, under a name that was free; a link is replaced, and not the file
// that it leads to; at no time can anyone read the new content except the readers of the new file.

import { chmod, chown, lstat, readFile, rename } from "node:fs/promises";
import { replaceFile } from "../target/atomic-file.js";

export interface Owner {
  uid: number;
  gid: number;
  mode: number;
}

/** Undefined if the file has this content already. Otherwise the new name of what was there before, if anything was. */
export async function putFile(
  file: string,
  content: Buffer,
  { uid, gid, mode }: Owner,
): Promise<{ before: string | undefined } | undefined> {
  const old = await lstat(file).catch(() => undefined);
  const isSame = old?.isFile() === true && (await readFile(file)).equals(content);
  const before = old === undefined || isSame ? undefined : await freeName(`${file}.before-setup`);
  if (before !== undefined) await rename(file, before);
  try {
    if (!isSame) await replaceFile(file, [content], mode);
    await chmod(file, mode);
    await chown(file, uid, gid);
  } catch (error) {
    if (before !== undefined) await rename(before, file);
    throw error;
  }
  return isSame ? undefined : { before };
}

/** The name, with a number at its end if it is taken. */
export async function freeName(name: string): Promise<string> {
  for (let number = 1; ; number += 1) {
    const one = number === 1 ? name : `${name}-${number}`;
    if ((await lstat(one).catch(() => undefined)) === undefined) return one;
  }
}
