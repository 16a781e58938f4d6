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
#   PuppetDB's address. With https, sasori uses the certificate of the host's Puppet agent.
# @param package_ensure
#   A version, `installed` or `latest`. Without effect if `package_source` is set: then the file's version is installed.
# @param package_source
#   A deb or rpm on the host. Without it the package comes from a repository.
# @param package_file_provider
#   The package provider that installs `package_source`.
# @param settings
#   More variables of sasori. They override those that this class sets.
# @param service_ensure
#   Whether the daemon runs.
# @param service_enable
#   Whether the daemon starts with the host.
# @param gateway
#   Whether HAProxy gets sasori's gateway as a second configuration file. If not, name the socket and the map file of your
#   own configuration in `settings`.
# @param manage_haproxy
#   Whether this class installs and runs HAProxy. `false` if another module does, for example puppetlabs-haproxy.
# @param masters
#   The puppetservers, by their names (certnames) in PuppetDB.
# @param collect_masters
#   Whether puppetservers with the class `sasori::master` are added. `puppetdb_query` finds them in PuppetDB.
# @param stats_password
#   Password for the gateway's stats page and metrics. The gateway needs it.
# @param gateway_settings
#   More variables of the gateway. The head of haproxy.cfg lists them.
# @param api_token
#   Bearer token for calls of the HTTP API that change something.
# @param certname
#   The name of the host's Puppet certificate.
# @param ssldir
#   Where the agent keeps its certificate: `/var/lib/puppet/ssl` with Debian's own agent, `/etc/puppetlabs/puppet/ssl` with
#   Puppet's and OpenVox's packages.
# @param export_allowlist
#   Whether to export this host's line for PuppetDB's certificate allowlist. The class `sasori::puppetdb` collects it.
# @param haproxy_options_variable
#   The variable from which HAProxy's systemd unit takes more arguments.
# @param haproxy_options
#   The arguments that load the gateway.
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
      # HAProxy and sasori do not need each other to start. The package brings sasori's user.
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
