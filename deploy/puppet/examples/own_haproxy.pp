# Beside a HAProxy that puppetlabs-haproxy configures, without sasori's gateway.
class { 'sasori':
  puppetdb_url   => 'https://puppetdb.example.com:8081',
  gateway        => false,
  manage_haproxy => false,
  settings       => {
    'SASORI_HAPROXY' => '/run/haproxy/admin.sock',
    'SASORI_BACKEND' => 'puppetservers',
  },
}
