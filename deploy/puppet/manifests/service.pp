# @summary The daemon
# @api private
class sasori::service {
  assert_private()

  service { 'sasori':
    ensure => $sasori::service_ensure,
    enable => $sasori::service_enable,
  }
}
