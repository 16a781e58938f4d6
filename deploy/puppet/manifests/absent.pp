# @summary Removes sasori
# @api private
class sasori::absent {
  assert_private()

  # HAProxy does not start without a map that its configuration names, and without the gateway that is somebody else's.
  $map = $sasori::gateway ? {
    true    => ['/var/lib/sasori'],
    default => [],
  }
  $folders = ['/etc/sasori', '/etc/haproxy/sasori'] + $map

  service { 'sasori':
    ensure => stopped,
    enable => false,
  }
  -> package { 'sasori':
    ensure => purged,
  }
  -> file { $folders:
    ensure => absent,
    force  => true,
    backup => false,
  }
  -> user { 'sasori':
    ensure => absent,
  }
  -> group { 'sasori':
    ensure => absent,
  }

  # HAProxy keeps the gateway until its next restart.
  if $sasori::manage_haproxy and $sasori::gateway {
    service { 'haproxy':
      ensure    => running,
      subscribe => Package['sasori'],
    }
  }
}
