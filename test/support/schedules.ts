// When the daemon of a test or a bench does passes. With the default full schedule, every quarter of an hour a pass that
// nobody asked for would come into the middle of it.

const NEVER = "0 0 1 1 *";

/** One full pass at the start, and then only when asked. */
export const ON_DEMAND = { SASORI_SCHEDULE: NEVER, SASORI_FULL_SCHEDULE: NEVER };

/** A changes pass each second. */
export const EVERY_SECOND = { SASORI_SCHEDULE: "* * * * * *", SASORI_FULL_SCHEDULE: NEVER };
