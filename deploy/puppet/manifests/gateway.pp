# @summary sasori's gateway, as a second configuration file of HAProxy
# @api private
class sasori::gateway {
  assert_private()

  if $sasori::stats_password =~ Undef {
    fail('sasori: the gateway needs stats_password')
  }

  # Each puppetserver with the class sasori::master is in PuppetDB with what that class was given.
  $collected = $sasori::collect_masters ? {
    true    => puppetdb_query('resources[certname, parameters] { type = "Class" and title = "Sasori::Master" }').reduce({}) |$found, $row| {
      $found + { $row['certname'] => { 'address' => $row['parameters']['address'], 'port' => $row['parameters']['port'] } }
    },
    default => {},
  }
  $masters = $collected + $sasori::masters
  if $masters.empty {
    fail('sasori: the gateway needs masters, by the parameter or by collect_masters')
  }
  if $masters.length > 32 {
    fail("sasori: the gateway takes 32 masters, not ${masters.length}")
  }

  $numbered = $masters.keys.sort.reduce({}) |$all, $name| {
    $number = $all.filter |$variable, $value| { $variable =~ /_NAME\z/ }.length + 1
    $master = $masters[$name]
    $certname = $master['certname'] ? {
      undef   => {},
      default => { "MASTER${number}_CERTNAME" => $master['certname'] },
    }
    $all + $certname + {
      "MASTER${number}"      => "${master['address']}:${pick($master['port'], 8140)}",
      "MASTER${number}_NAME" => $name,
    }
  }
  $variables = {
    $sasori::haproxy_options_variable => $sasori::haproxy_options,
    'NODE_MASTER_MAP' => $sasori::config::map,
    'HAPROXY_SOCKET'  => '/run/haproxy/sasori.sock',
    'HAPROXY_CHROOT'  => '/var/lib/haproxy',
    'GATEWAY_ADDRESS' => '127.0.0.1',
    'GATEWAY_PORT'    => 8080,
    'STATS_USER'      => 'sasori',
    'STATS_PASSWORD'  => $sasori::stats_password.unwrap,
    'MASTERS_CA'      => '/etc/sasori/ssl/ca.pem',
    'MASTERS_CERT'    => '/etc/sasori/ssl/gateway.pem',
    'GLIBC_TUNABLES'  => 'glibc.malloc.mxfast=0',
  } + $numbered + $sasori::gateway_settings

  file { '/etc/sasori/gateway.env':
    ensure    => file,
    owner     => 'root',
    group     => 'root',
    mode      => '0640',
    show_diff => false,
    content   => Sensitive(epp('sasori/env.epp', { 'variables' => $variables })),
  }

  # What the gateway shows the puppetservers. HAProxy reads it as root, before it drops its rights.
  concat { '/etc/sasori/ssl/gateway.pem':
    owner     => 'root',
    group     => 'root',
    mode      => '0600',
    show_diff => false,
  }
  concat::fragment {
    default:
      target => '/etc/sasori/ssl/gateway.pem',
      ;
    'sasori gateway certificate':
      source => "${sasori::ssldir}/certs/${sasori::certname}.pem",
      order  => '1',
      ;
    'sasori gateway key':
      source => "${sasori::ssldir}/private_keys/${sasori::certname}.pem",
      order  => '2',
      ;
  }

  if $sasori::manage_haproxy {
    service { 'haproxy':
      ensure => running,
      enable => true,
    }
  }
  # A restart, not a reload, because only a new process gets new variables. If another module manages the service, it is
  # notified.
  File['/etc/sasori/gateway.env'] ~> Service <| title == 'haproxy' |>
  Concat['/etc/sasori/ssl/gateway.pem'] ~> Service <| title == 'haproxy' |>
}
