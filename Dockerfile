# sasori as a container: `serve` is what it does unless told otherwise, `docker run --rm ... sasori diff` another command.
# The demo's programs are in the same image, for docker-compose.yml.
# Configured by the SASORI_ variables. Folders that are meant to be volumes:
#   /var/lib/sasori   the map file and sasori's state; HAProxy reads it
#   /run/sasori       HAProxy's socket: group 99 is HAProxy's in its official image, and both may write here
#   /etc/sasori       the API token
# Mount the folders, never a file in them: files are replaced by a rename.

FROM node:24-bookworm-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY . .
# Declarations and source maps are for those who import or debug it. Whatever the umask of the clone, all may read it.
RUN npm run build \
 && find dist -name '*.d.ts' -delete -o -name '*.map' -delete \
 && chmod -R u=rwX,go=rX dist package.json \
 && chmod 755 dist/src/cli.js

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="sasori" \
      org.opencontainers.image.description="Keeps HAProxy's node-to-Puppet-master map true" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/node:24-bookworm-slim"
# npm only runs scripts here, and its own folder may be read-only.
ENV NODE_ENV=production \
    NPM_CONFIG_UPDATE_NOTIFIER=false \
    NPM_CONFIG_LOGS_MAX=0
WORKDIR /app
# A new volume takes owner and mode from here.
RUN install -d -o node -g node -m 755 /var/lib/sasori \
 && install -d -o node -g 99 -m 2775 /run/sasori \
 && install -d -o node -g node -m 750 /etc/sasori \
 && ln -s /app/dist/src/cli.js /usr/local/bin/sasori
COPY --from=dependencies /app/node_modules ./node_modules
COPY --from=build /app/package.json ./
COPY --from=build /app/dist ./dist
# By number, because Kubernetes' runAsNonRoot cannot look up a name.
USER 1000:1000
EXPOSE 9180
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["sasori", "healthy"]
ENTRYPOINT ["node", "/app/dist/src/cli.js"]
CMD ["serve"]
