# @summary For PuppetDB's host: lets the gateways with `export_allowlist` ask it
#
# PuppetDB reads its allowlist at the start, so notify its service by the parameter.
#
# @param service
#   PuppetDB's service, which another module manages; undef tells nobody.
class sasori::puppetdb (
  Optional[String[1]] $service = undef,
) {
  if $service {
    File_line <<| tag == 'sasori_puppetdb_allowlist' |>> ~> Service[$service]
  } else {
    File_line <<| tag == 'sasori_puppetdb_allowlist' |>>
  }
}
