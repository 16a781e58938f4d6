# sasori as a container. It runs `serve`; `docker run --rm ... sasori diff` runs another command.
# The demo's programs are in the same image, for docker-compose.yml.
# Configured by the SASORI_ variables. Folders that are meant to be volumes:
#   /var/lib/sasori   the map file and sasori's state; HAProxy reads it
#   /run/sasori       HAProxy's socket: group 99 is HAProxy's in its official image, and both may write here
#   /etc/sasori       the API token
# Mount the folders, never a file in them: files are replaced by a rename.

FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY . .
# One file instead of thousands, as in the deb and the rpm: smaller, and a health check takes half the processor time.
RUN npm run build && node setup/packaging/bundle.mjs
WORKDIR /app/dist/bundle
RUN /app/node_modules/.bin/esbuild ../demo/master.js ../demo/nodes.js ../demo/prepare.js ../demo/puppetdb.js \
      --outdir=demo --out-extension:.js=.mjs --bundle --splitting --platform=node --format=esm --minify --log-level=warning \
      --banner:js='import { createRequire } from "node:module"; const require = createRequire(import.meta.url);' \
 && npm pkg set scripts.update-map='node sasori.cjs sync' \
 # The bytecode is made by the Node that will run it. The command fails, because no sasori listens there.
 && (SASORI_PACKAGING_CACHE=program.cache SASORI_LISTEN=127.0.0.1:1 node sasori.cjs status 2>/dev/null; test -s program.cache) \
 # Every user may read it, whatever the umask of the clone.
 && chmod -R u=rwX,go=rX .

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="sasori" \
      org.opencontainers.image.description="Keeps HAProxy's node-to-puppetserver map in sync with PuppetDB" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/node:24-bookworm-slim"
# One malloc arena for all threads instead of one for each: less memory in the same time (bench/README.md, "full").
# npm only runs scripts here, and its own folder may be read-only.
ENV NODE_ENV=production \
    MALLOC_ARENA_MAX=1 \
    NPM_CONFIG_UPDATE_NOTIFIER=false \
    NPM_CONFIG_LOGS_MAX=0
WORKDIR /app
# A new volume takes owner and mode from here.
RUN install -d -o node -g node -m 755 /var/lib/sasori \
 && install -d -o node -g 99 -m 2775 /run/sasori \
 && install -d -o node -g node -m 750 /etc/sasori \
 && printf '#!/bin/sh\nexec node /app/sasori.cjs "$@"\n' >/usr/local/bin/sasori \
 && chmod 755 /usr/local/bin/sasori
COPY --from=build /app/dist/bundle ./
# By number, because Kubernetes' runAsNonRoot cannot look up a name.
USER 1000:1000
EXPOSE 9180
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["sasori", "healthy"]
ENTRYPOINT ["node", "/app/sasori.cjs"]
CMD ["serve"]
