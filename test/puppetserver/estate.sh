#!/bin/bash
# A Puppet estate on one Debian host, of Debian's packages and with their own configuration: the puppetservers puppet1 (the CA),
# puppet2 and puppet3, which have folders of their own in the same places, and PuppetDB with TLS behind all. puppet3 is not
# started. The certificates also have the name of a pool: puppet1 is fra, the others are lon.
set -euo pipefail

cat >>/etc/hosts <<'END'
127.0.1.1 puppet1.example.com
127.0.1.2 puppet2.example.com
127.0.1.3 puppet3.example.com
127.0.1.8 puppetdb.example.com
127.0.1.9 puppet.example.com sasori.example.com gateway.example.com
END

# --- PuppetDB's database --------------------------------------------------------------------------------------

sql() { runuser -u postgres -- psql -q "$@"; }
sql -c "CREATE ROLE puppetdb LOGIN PASSWORD 'puppetdb'" -c "CREATE DATABASE puppetdb OWNER puppetdb TEMPLATE template0 ENCODING 'UTF8'"
sql -d puppetdb -c "CREATE EXTENSION pg_trgm"

# --- puppet1 --------------------------------------------------------------------------------------------------

etc=/etc/puppet
cat >$etc/puppet.conf <<'END'
[main]
certname = puppet1.example.com
server = puppet1.example.com
ca_server = puppet1.example.com
[server]
autosign = true
storeconfigs = true
storeconfigs_backend = puppetdb
reports = puppetdb
END
printf '[main]\nserver_urls = https://puppetdb.example.com:8081\n' >$etc/puppetdb.conf
printf -- '---\nserver:\n  facts:\n    terminus: puppetdb\n    cache: yaml\n' >$etc/routes.yaml
mkdir -p $etc/code/environments/production/manifests
# The master that compiled it stands in the catalog.
echo "notify { \"by \${settings::certname}\": }" >$etc/code/environments/production/manifests/site.pp
sed -i 's/ssl-host: .*/ssl-host: 127.0.1.1/' $etc/puppetserver/conf.d/webserver.conf
sed -i 's/#max-active-instances: 1/max-active-instances: 1/' $etc/puppetserver/conf.d/puppetserver.conf
# Three of them, and PuppetDB, on a machine with two cores: a quick start counts more than a quick run.
sed -i 's/-Xms1g -Xmx1g/-Xmx640m -XX:+UseSerialGC -XX:TieredStopAtLevel=1/' /etc/default/puppetserver
sed -i 's/-Xmx192m/-Xmx320m -XX:+UseSerialGC -XX:TieredStopAtLevel=1/' /etc/default/puppetdb

rm -rf /var/lib/puppet/ssl $etc/puppetserver/ca
puppetserver ca setup --subject-alt-names puppet1.example.com,fra.example.com
# Made while the CA does not run; all others are made as the documents say.
puppetserver ca generate --ca-client --certname puppetdb.example.com
for name in puppet2 puppet3; do
  puppetserver ca generate --ca-client --certname $name.example.com --subject-alt-names $name.example.com,lon.example.com
done
chown -R puppet: /var/lib/puppet/ssl $etc/puppetserver/ca

# --- puppet2, puppet3 -----------------------------------------------------------------------------------------

for number in 2 3; do
  name=puppet$number
  mkdir -p /estate/$name
  cp -a $etc /estate/$name/etc
  for folder in /var/lib/puppet /var/lib/puppetserver /var/log/puppetserver; do
    mkdir -p /estate/$name$folder
    cp -a $folder/. /estate/$name$folder
  done
  chown -R puppet: /estate/$name/var
  rm -rf /estate/$name/etc/puppetserver/ca
  sed -i "s/^certname = .*/certname = $name.example.com/" /estate/$name/etc/puppet.conf
  sed -i "s/ssl-host: .*/ssl-host: 127.0.1.$number/" /estate/$name/etc/puppetserver/conf.d/webserver.conf
  echo puppetlabs.services.ca.certificate-authority-disabled-service/certificate-authority-disabled-service \
    >/estate/$name/etc/puppetserver/services.d/ca.cfg
  sed "s/RuntimeDirectory=.*/RuntimeDirectory=$name/" /lib/systemd/system/puppetserver.service >/etc/systemd/system/$name.service
  mkdir /etc/systemd/system/$name.service.d
  printf '[Service]\nBindPaths=/estate/%s/etc:/etc/puppet%s\n' $name \
    "$(printf " /estate/$name%s:%s" /var/lib/puppet{,} /var/lib/puppetserver{,} /var/log/puppetserver{,})" \
    >/etc/systemd/system/$name.service.d/folders.conf
done
# A file that only this master has.
for name in puppet1 puppet2 puppet3; do
  at=/estate/$name/etc
  [ $name != puppet1 ] || at=$etc
  mkdir -p $at/code/environments/production/modules/site/files
  echo $name >$at/code/environments/production/modules/site/files/$name
done
# On a busy machine a start takes long, and the unit's `kill -0` comes before the process has its user, so it is done as root.
for unit in puppetserver puppet2 puppet3 puppetdb; do
  mkdir -p /etc/systemd/system/$unit.service.d
  { printf '[Service]\nTimeoutStartSec=900\nExecStartPost=\n'; systemctl cat $unit | sed -n 's/^ExecStartPost=sh/ExecStartPost=+sh/p'; } \
    >/etc/systemd/system/$unit.service.d/busy-machine.conf
done
systemctl daemon-reload

# --- PuppetDB -------------------------------------------------------------------------------------------------

ssl=/var/lib/puppet/ssl
mkdir /etc/puppetdb/ssl
cp $ssl/certs/puppetdb.example.com.pem /etc/puppetdb/ssl/cert.pem
cp $ssl/private_keys/puppetdb.example.com.pem /etc/puppetdb/ssl/key.pem
cp $ssl/certs/ca.pem /etc/puppetdb/ssl/ca.pem
chown -R puppetdb: /etc/puppetdb/ssl
cat >/etc/puppetdb/conf.d/jetty.ini <<'END'
[jetty]
ssl-host = 127.0.1.8
ssl-port = 8081
ssl-key = /etc/puppetdb/ssl/key.pem
ssl-cert = /etc/puppetdb/ssl/cert.pem
ssl-ca-cert = /etc/puppetdb/ssl/ca.pem
END
sed -i 's/^password = .*/password = puppetdb/' /etc/puppetdb/conf.d/database.ini

systemctl start puppetserver puppet2 puppetdb
