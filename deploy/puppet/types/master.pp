# Where a puppetserver is reached, and its name in its certificate if that is another than its name in PuppetDB.
type Sasori::Master = Struct[{
  address            => Stdlib::Host,
  Optional[port]     => Stdlib::Port,
  Optional[certname] => String[1],
}]
