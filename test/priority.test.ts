// The gateway's second map in a real HAProxy: an entry is added to the file and to HAProxy, and removed from both.

import { describe, expect, test } from "vitest";
import { PriorityMap } from "../src/target/priority.js";
import { DEFAULTS, type HaproxyPlaces, runtimeCommand, withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";

const KEY = "db1.example.com";

/** HAProxy reads the entries from the file when it starts. */
const config = (at: HaproxyPlaces) => `global
  stats socket ${at.socketPath} level admin

${DEFAULTS}
frontend nodes
  bind 127.0.0.1:${at.ports.frontend}
  http-request set-priority-class req.hdr(X-Node-Name),map_str_int(${at.mapPath},0)
  http-request return status 200
`;

describe.each(haproxyBinaries())("priority on HAProxy $version", ({ bin }) => {
  test.each([
    { what: "set", value: -7 },
    { what: "unset", value: undefined },
  ])("$what reaches a key that stands there more than once", ({ value }) =>
    withHaproxy(
      { bin, config, map: [-100, -50, 3].map((one) => [KEY, `${one}`] as const) },
      async (haproxy) => {
        const { socketPath, mapPath } = haproxy;
        const priority = new PriorityMap(mapPath, [{ name: "it", connect: { path: socketPath } }]);
        const { haproxy: told } = await priority.change(KEY, value);
        expect(told).toEqual([{ haproxy: "it" }]);
        const found = await runtimeCommand(socketPath, `get map ${mapPath} ${KEY}`);
        expect(found).toMatch(value === undefined ? /found=no/ : new RegExp(`value="${value}"`));
        if (value !== undefined) expect((await priority.change(KEY, undefined)).haproxy).toEqual(told);
        expect(await runtimeCommand(socketPath, `show map ${mapPath}`)).not.toContain(KEY);
      },
    ),
  );

  test("of a key that stands there more than once, the first class counts, as in HAProxy", () =>
    withHaproxy({ bin, config, map: [-100, -50].map((one) => [KEY, `${one}`] as const) }, async (haproxy) => {
      const { socketPath, mapPath } = haproxy;
      const priority = new PriorityMap(mapPath, [{ name: "it", connect: { path: socketPath } }]);
      await priority.change("db2.example.com", 5);
      expect(Object.fromEntries(await priority.list())).toEqual({ [KEY]: -100, "db2.example.com": 5 });
      expect(await runtimeCommand(socketPath, `get map ${mapPath} ${KEY}`)).toContain('value="-100"');
    }));
});
