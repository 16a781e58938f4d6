# The address of a puppetserver, and the name in its certificate if that differs from its name in PuppetDB.
type Sasori::Master = Struct[{
  address            => Stdlib::Host,
  Optional[port]     => Stdlib::Port,
  Optional[certname] => String[1],
}]
