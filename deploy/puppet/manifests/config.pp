# @summary /etc/sasori: settings, the certificate, the API token
# @api private
class sasori::config {
  assert_private()

  $map = '/var/lib/sasori/node-master.map'
  $is_tls = $sasori::puppetdb_url =~ /\Ahttps:/
  $ssl = '/etc/sasori/ssl'

  $certificate = $is_tls ? {
    true    => {
      'SASORI_PUPPETDB_CERT' => "${ssl}/cert.pem",
      'SASORI_PUPPETDB_KEY'  => "${ssl}/key.pem",
      'SASORI_PUPPETDB_CA'   => "${ssl}/ca.pem",
    },
    default => {},
  }
  $token = $sasori::api_token ? {
    undef   => {},
    default => { 'SASORI_API_TOKEN_FILE' => '/etc/sasori/api.token' },
  }
  $settings = {
    'SASORI_PUPPETDB_URL' => $sasori::puppetdb_url,
    'SASORI_HAPROXY'      => '/run/haproxy/sasori.sock',
    'SASORI_MAP_FILE'     => $map,
    'SASORI_STATE_FILE'   => '/var/lib/sasori/state.json',
  } + $certificate + $token + $sasori::settings

  file {
    default:
      ensure => file,
      owner  => 'root',
      group  => 'sasori',
      mode   => '0640',
      ;
    ['/etc/sasori', $ssl]:
      ensure => directory,
      mode   => '0750',
      ;
    '/etc/sasori/sasori.env':
      content => epp('sasori/env.epp', { 'variables' => $settings }),
      ;
  }

  # Copies, because only root can read the agent's private key. Puppet updates them when the agent renews its certificate.
  $copies = ($is_tls or $sasori::gateway) ? {
    true    => {
      "${ssl}/cert.pem" => { 'source' => "file://${sasori::ssldir}/certs/${sasori::certname}.pem" },
      "${ssl}/key.pem"  => { 'source' => "file://${sasori::ssldir}/private_keys/${sasori::certname}.pem" },
      "${ssl}/ca.pem"   => { 'source' => "file://${sasori::ssldir}/certs/ca.pem" },
    },
    default => {},
  }
  $api_token = $sasori::api_token ? {
    undef   => {},
    default => { '/etc/sasori/api.token' => { 'content' => Sensitive("${sasori::api_token.unwrap}\n") } },
  }
  ($copies + $api_token).each |$path, $from| {
    file { $path:
      ensure    => file,
      owner     => 'root',
      group     => 'sasori',
      mode      => '0640',
      show_diff => false,
      *         => $from,
    }
  }
}
