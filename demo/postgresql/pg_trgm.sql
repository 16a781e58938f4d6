-- PuppetDB does not start without this extension.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
