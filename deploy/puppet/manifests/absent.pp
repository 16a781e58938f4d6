# @summary Nothing of sasori
# @api private
class sasori::absent {
  assert_private()

  service { 'sasori':
    ensure => stopped,
    enable => false,
  }
  -> package { 'sasori':
    ensure => purged,
  }
  -> file { ['/etc/sasori', '/etc/haproxy/sasori', '/var/lib/sasori']:
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

  # It has the gateway until it is started anew.
  if $sasori::manage_haproxy and $sasori::gateway {
    service { 'haproxy':
      ensure    => running,
      subscribe => Package['sasori'],
    }
  }
}
