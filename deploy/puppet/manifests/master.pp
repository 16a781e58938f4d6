# @summary For puppetservers: gateways with `collect_masters` find those that have this class, in PuppetDB
#
# @param address
#   Where gateways reach this puppetserver.
# @param port
#   Its port.
class sasori::master (
  Stdlib::Host $address = $trusted['certname'],
  Stdlib::Port $port    = 8140,
) {
}
