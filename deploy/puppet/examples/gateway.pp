# A gateway with two puppetservers, from a package file.
class { 'sasori':
  package_source => '/var/cache/sasori.deb',
  puppetdb_url   => 'https://puppetdb.example.com:8081',
  stats_password => Sensitive('take-it-from-hiera-eyaml'),
  masters        => {
    'puppet1.example.com' => { 'address' => 'puppet1.example.com' },
    'puppet2.example.com' => { 'address' => 'puppet2.example.com' },
  },
}
