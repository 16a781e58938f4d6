# @summary The package, with its user, its unit and the map's folder
# @api private
class sasori::install {
  assert_private()

  if $sasori::manage_haproxy {
    # Before sasori, so that its user gets into HAProxy's group.
    package { 'haproxy':
      ensure => installed,
      before => Package['sasori'],
    }
  }

  if $sasori::package_source {
    package { 'sasori':
      ensure   => latest,
      provider => $sasori::package_file_provider,
      source   => $sasori::package_source,
    }
  } else {
    package { 'sasori':
      ensure => $sasori::package_ensure,
    }
  }
}
