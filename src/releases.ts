// Compares versions as HAProxy and PuppetDB report them, such as "2.8.5-1ubuntu3" or "8.7.0".

/** Whether it is this release or a later one. Text that is not a version counts as older than every release. */
export function isAtLeast(version: string, major: number, minor: number): boolean {
  const [ours = 0, minorOurs = 0] = version.split(/[.-]/).map(Number);
  return ours > major || (ours === major && minorOurs >= minor);
}
