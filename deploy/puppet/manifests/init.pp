# @summary sasori beside HAProxy: nodes reach their own puppetserver through one address
#
# @example From a package file that Puppet has put there, with two puppetservers
#   class { 'sasori':
#     package_source => '/var/cache/sasori_0.1.0_amd64.deb',
#     puppetdb_url   => 'https://puppetdb.example.com:8081',
#     stats_password => Sensitive(lookup('sasori_stats_password')),
#     masters        => {
#       'puppet1.example.com' => { 'address' => 'puppet1.example.com' },
#       'puppet2.example.com' => { 'address' => 'puppet2.example.com' },
#     },
#   }
#
# @param ensure
#   `absent` removes everything: service, package, settings, user, and with `gateway` the map.
# @param puppetdb_url
#   PuppetDB's address. With https the agent's own certificate is shown to it.
# @param package_ensure
#   A version, `installed` or `latest`. With `package_source` the file decides: then it is `latest`.
# @param package_source
#   A deb or rpm on the host. Without it the package comes from a repository.
# @param package_file_provider
#   What installs such a file.
# @param settings
#   More variables of sasori, and others than this class would set.
# @param service_ensure
#   Whether the daemon runs.
# @param service_enable
#   Whether the daemon starts with the host.
# @param gateway
#   Whether HAProxy gets sasori's gateway as a second configuration file. Without it say in `settings` which socket and
#   which map file your own configuration has.
# @param manage_haproxy
#   Whether this class installs and runs HAProxy. `false` where another module does, puppetlabs-haproxy for one.
# @param masters
#   The puppetservers by the name that they have in PuppetDB.
# @param collect_masters
#   Whether puppetservers with the class `sasori::master` are added. They are asked for in PuppetDB, by `puppetdb_query`.
# @param stats_password
#   Of the gateway's stats page and metrics.
# @param gateway_settings
#   More variables of the gateway: the head of haproxy.cfg lists them.
# @param api_token
#   Bearer token for calls of the HTTP API that change something.
# @param certname
#   The name of the host's Puppet certificate.
# @param ssldir
#   Where the agent keeps it. Debian's own puppet-agent has it elsewhere than Puppet's and OpenVox's packages.
# @param export_allowlist
#   Whether a line for PuppetDB's certificate allowlist is exported, for the class `sasori::puppetdb`.
# @param haproxy_options_variable
#   The variable by which HAProxy's unit takes more arguments.
# @param haproxy_options
#   What the gateway needs there.
class sasori (
  Stdlib::HTTPUrl                  $puppetdb_url,
  String[1]                        $haproxy_options_variable,
  String[1]                        $haproxy_options,
  Enum['dpkg', 'rpm']              $package_file_provider,
  Enum['present', 'absent']        $ensure           = 'present',
  String[1]                        $package_ensure   = 'installed',
  Optional[Stdlib::Absolutepath]   $package_source   = undef,
  Sasori::Setting                  $settings         = {},
  Stdlib::Ensure::Service          $service_ensure   = 'running',
  Boolean                          $service_enable   = true,
  Boolean                          $gateway          = true,
  Boolean                          $manage_haproxy   = true,
  Hash[String[1], Sasori::Master]  $masters          = {},
  Boolean                          $collect_masters  = false,
  Optional[Sensitive[String[1]]]   $stats_password   = undef,
  Hash[String[1], Variant[String[1], Integer]] $gateway_settings = {},
  Optional[Sensitive[String[1]]]   $api_token        = undef,
  String[1]                        $certname         = $trusted['certname'],
  Stdlib::Absolutepath             $ssldir           = $facts['aio_agent_version'] ? {
    undef   => '/var/lib/puppet/ssl',
    default => '/etc/puppetlabs/puppet/ssl',
  },
  Boolean                          $export_allowlist = false,
) {
  if $ensure == 'present' {
    contain sasori::install
    contain sasori::config
    contain sasori::service

    Class['sasori::install'] -> Class['sasori::config'] ~> Class['sasori::service']

    if $gateway {
      contain sasori::gateway
      # HAProxy and sasori wait for nothing of each other; the user comes with the package.
      Class['sasori::config'] -> Class['sasori::gateway']
    }

    if $export_allowlist {
      @@file_line { "sasori ${certname}":
        path => '/etc/puppetlabs/puppetdb/certificate-allowlist',
        line => $certname,
        tag  => 'sasori_puppetdb_allowlist',
      }
    }
  } else {
    contain sasori::absent
  }
}
