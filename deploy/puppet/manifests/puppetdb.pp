# @summary For PuppetDB's host: lets the gateways with `export_allowlist` ask it
#
# PuppetDB reads its allowlist only when it starts. Set `service`, so that a change restarts it.
#
# @param service
#   The title of PuppetDB's service, which another module manages. With undef nothing is restarted.
class sasori::puppetdb (
  Optional[String[1]] $service = undef,
) {
  if $service {
    File_line <<| tag == 'sasori_puppetdb_allowlist' |>> ~> Service[$service]
  } else {
    File_line <<| tag == 'sasori_puppetdb_allowlist' |>>
  }
}
