// PuppetDB's AST query language, as far as sasori speaks it, over rows in memory.
// What is not supported is refused with PuppetDB's own words where it has some: an answer that is right by
// accident would hide a query that the real one does not take. Comparisons with null are unknown, as in SQL.
// Checked against PuppetDB 7.12 and its query_eng/engine.clj.

export type Value = string | boolean | null;
export type Row = Readonly<Record<string, Value>>;

/** PuppetDB orders timestamps only. A `flag` cannot be extracted, an `opaque` column not be compared. */
export type ColumnType = "string" | "timestamp" | "flag" | "opaque";

export interface Entity {
  columns: Readonly<Record<string, ColumnType>>;
  rows(): Iterable<Row>;
  /** Whether only active nodes are meant when the query says nothing of `node_state`. */
  activeOnly: boolean;
}

export interface Database {
  entities: Readonly<Record<string, Entity>>;
  isActive(certname: Value): boolean;
}

/** The message is PuppetDB's answer with status 400. */
export class RefusedQuery extends Error {}

type Truth = boolean | null;
type Condition = (row: Row) => Truth;

const ACTIVE = ["=", "node_state", "active"];

/** A part of a sorted answer, as the parameters of the URL say it. */
export interface Page {
  order_by?: { field: string; order?: string | undefined }[] | undefined;
  limit?: number | undefined;
  offset?: number | undefined;
}

/** Answers a query (undefined: all rows) to one entity's endpoint. Throws `RefusedQuery`. */
export function answerQuery(
  database: Database,
  entityName: string,
  query: unknown,
  page: Page = {},
): Row[] | [{ count: number }] {
  const { columns, where, groupBy } = parseExtract(query);
  const entity = entityNamed(database, entityName);
  const restricted = entity.activeOnly && !mentionsNodeState(where) ? conjunction(where, ACTIVE) : where;
  const rows = pageOf(entityName, entity, select(database, entityName, restricted), page);
  if (isCount(columns)) return [{ count: rows.length }];
  if (groupBy !== undefined) return newest(entityName, entity, rows, columns, groupBy);
  const names = columns === undefined ? extractable(entity) : checkedColumns(entityName, entity, columns);
  return rows.map((row) => Object.fromEntries(names.map((name) => [name, row[name] ?? null])));
}

function parseExtract(query: unknown): { columns: unknown; where: unknown; groupBy?: string[] } {
  if (query === undefined) return { columns: undefined, where: undefined };
  if (!Array.isArray(query)) throw new RefusedQuery(`a query must be an array, not ${JSON.stringify(query)}`);
  const [operator, columns, where, groupBy, ...rest] = query;
  if (operator !== "extract") return { columns: undefined, where: query };
  if (rest.length > 0) throw unsupported(query);
  const extract = { columns: typeof columns === "string" ? [columns] : columns, where };
  if (groupBy === undefined) return extract;
  if (!Array.isArray(groupBy) || groupBy[0] !== "group_by") throw unsupported(groupBy);
  return { ...extract, groupBy: groupBy.slice(1) };
}

function pageOf(entityName: string, entity: Entity, rows: Row[], { order_by = [], limit, offset = 0 }: Page) {
  checkedColumns(
    entityName,
    entity,
    order_by.map(({ field }) => field),
  );
  const compare = (a: Row, b: Row) => {
    for (const { field, order } of order_by) {
      const [left, right] = [String(a[field]), String(b[field])];
      if (left !== right) return (left < right ? -1 : 1) * (order === "desc" ? -1 : 1);
    }
    return 0;
  };
  return rows.sort(compare).slice(offset, limit === undefined ? undefined : offset + limit);
}

/** `["extract", [...group, ["function", "max", column], ...], where, ["group_by", ...group]]`: `max`, then `max_2`. */
function newest(entityName: string, entity: Entity, rows: Row[], columns: unknown, group: string[]): Row[] {
  const wanted = Array.isArray(columns) ? columns : [];
  const maxima = wanted.slice(group.length).map(([operator, name, column]) => {
    if (operator !== "function" || name !== "max") throw unsupported(columns);
    return column;
  });
  const isPlain = JSON.stringify(wanted.slice(0, group.length)) === JSON.stringify(group);
  if (maxima.length === 0 || !isPlain) throw unsupported(columns);
  checkedColumns(entityName, entity, [...group, ...maxima]);
  const groups = new Map<string, Row>();
  for (const row of rows) {
    const key = JSON.stringify(group.map((grouped) => row[grouped]));
    const result: Record<string, Value> = Object.fromEntries(
      group.map((grouped) => [grouped, row[grouped] ?? null]),
    );
    for (const [index, column] of maxima.entries()) {
      const title = index === 0 ? "max" : `max_${index + 1}`;
      const [max, value] = [groups.get(key)?.[title] ?? null, row[column] ?? null];
      result[title] = max === null || (value !== null && value > max) ? value : max;
    }
    groups.set(key, result);
  }
  return [...groups.values()];
}

function select(database: Database, entityName: string, where: unknown): Row[] {
  const rows = [...entityNamed(database, entityName).rows()];
  if (where === undefined) return rows;
  const condition = compile(database, entityName, where);
  return rows.filter((row) => condition(row) === true);
}

function compile(database: Database, entityName: string, expression: unknown): Condition {
  if (!Array.isArray(expression)) throw unsupported(expression);
  const [operator, ...operands] = expression;
  switch (operator) {
    case "and":
    case "or": {
      if (operands.length === 0) {
        throw new RefusedQuery(`'${operator}' takes at least one argument, but none were supplied`);
      }
      const conditions = operands.map((operand) => compile(database, entityName, operand));
      const decisive = operator === "or";
      return (row) => {
        const truths = conditions.map((condition) => condition(row));
        if (truths.includes(decisive)) return decisive;
        return truths.includes(null) ? null : !decisive;
      };
    }
    case "not": {
      if (operands.length !== 1) {
        throw new RefusedQuery(`'not' takes exactly one argument, but ${operands.length} were supplied`);
      }
      const condition = compile(database, entityName, operands[0]);
      return (row) => {
        const truth = condition(row);
        return truth === null ? null : !truth;
      };
    }
    case "=":
    case ">":
    case ">=":
    case "<":
    case "<=":
      if (operands.length !== 2) throw new RefusedQuery(`${operator} requires exactly two arguments`);
      return operator === "=" && operands[0] === "node_state"
        ? nodeState(database, entityName, operands[1])
        : comparison(database, entityName, operator, operands[0], operands[1]);
    case "null?": {
      const [column, wanted] = operands;
      if (operands.length !== 2 || typeof wanted !== "boolean") throw unsupported(expression);
      typeOf(database, entityName, column);
      return (row) => (row[column] === null) === wanted;
    }
    case "in":
      return membership(database, entityName, expression);
    default:
      throw unsupported(expression);
  }
}

const COMPARE: Record<string, (left: number, right: number) => boolean> = {
  "=": (left, right) => left === right,
  ">": (left, right) => left > right,
  ">=": (left, right) => left >= right,
  "<": (left, right) => left < right,
  "<=": (left, right) => left <= right,
};

function comparison(
  database: Database,
  entityName: string,
  operator: string,
  column: string,
  wanted: unknown,
): Condition {
  const type = typeOf(database, entityName, column);
  if (type === "timestamp" && wanted !== null) {
    const time = Date.parse(String(wanted));
    if (Number.isNaN(time)) throw new RefusedQuery(`'${wanted}' is not a valid timestamp value`);
    return (row) => {
      const value = row[column];
      return typeof value === "string" ? (COMPARE[operator]?.(Date.parse(value), time) ?? null) : null;
    };
  }
  if (operator !== "=")
    throw new RefusedQuery(`Query operators >,>=,<,<= are not allowed on field ${column}`);
  if (wanted === null) return (row) => row[column] === null;
  if (type === "opaque") throw unsupported([operator, column, wanted]);
  return (row) => (row[column] === null ? null : row[column] === wanted);
}

function nodeState(database: Database, entityName: string, state: unknown): Condition {
  typeOf(database, entityName, "certname");
  if (state === "any") return () => true;
  if (state === "active" || state === "inactive") {
    return (row) => database.isActive(row.certname ?? null) === (state === "active");
  }
  throw new RefusedQuery(`No matching clause: ${state}`);
}

/**
 * `["in", column, ["array", values]]` or `["in", column, ["from", entity, ["extract", column, where]]]`. No entity is
 * restricted inside of the second.
 */
function membership(database: Database, entityName: string, expression: unknown[]): Condition {
  const [, column, subquery, ...rest] = expression;
  if (
    typeof column === "string" &&
    Array.isArray(subquery) &&
    subquery[0] === "array" &&
    Array.isArray(subquery[1])
  ) {
    typeOf(database, entityName, column);
    const values = new Set<unknown>(subquery[1]);
    return (row) => (row[column] === null ? null : values.has(row[column]));
  }
  if (!Array.isArray(subquery) || subquery[0] !== "from" || subquery.length !== 3 || rest.length > 0) {
    throw unsupported(expression);
  }
  const [own, ...others] = typeof column === "string" ? [column] : Array.isArray(column) ? column : [];
  typeOf(database, entityName, own);
  const [, from, extract] = subquery;
  const { columns, where } = parseExtract(extract);
  const [wanted, ...more] = checkedColumns(String(from), entityNamed(database, String(from)), columns ?? []);
  if (wanted === undefined || others.length > 0 || more.length > 0) throw unsupported(expression);
  const values = new Set(select(database, String(from), where).map((row) => row[wanted]));
  return (row) => values.has(row[own]);
}

function entityNamed(database: Database, name: string): Entity {
  const entity = Object.hasOwn(database.entities, name) ? database.entities[name] : undefined;
  if (entity === undefined) throw new RefusedQuery(`the stand-in has no entity '${name}'`);
  return entity;
}

function typeOf(database: Database, entityName: string, column: unknown): ColumnType {
  const { columns } = entityNamed(database, entityName);
  const type = typeof column === "string" && Object.hasOwn(columns, column) ? columns[column] : undefined;
  if (type !== undefined) return type;
  const known = Object.keys(columns).join("', '");
  throw new RefusedQuery(
    `'${column}' is not a queryable object for ${entityName}. Known queryable objects are '${known}'`,
  );
}

function checkedColumns(entityName: string, entity: Entity, columns: unknown): string[] {
  if (!Array.isArray(columns)) throw unsupported(columns);
  const known = extractable(entity);
  const unknown = columns.find((column) => !known.includes(column));
  if (unknown === undefined) return columns;
  throw new RefusedQuery(
    `Can't extract unknown '${entityName}' field '${unknown}'. Acceptable fields are '${known.join("', '")}'`,
  );
}

const extractable = ({ columns }: Entity): string[] =>
  Object.keys(columns).filter((column) => columns[column] !== "flag");

// PuppetDB looks for it anywhere in the condition, subqueries too, before it adds its own.
function mentionsNodeState(where: unknown): boolean {
  if (!Array.isArray(where)) return false;
  return (where[0] === "=" && where[1] === "node_state") || where.some(mentionsNodeState);
}

const conjunction = (left: unknown, right: unknown): unknown =>
  left === undefined ? right : ["and", left, right];

const isCount = (columns: unknown): boolean => JSON.stringify(columns) === '[["function","count"]]';

const unsupported = (expression: unknown): RefusedQuery =>
  new RefusedQuery(`the stand-in does not support ${JSON.stringify(expression)}`);
