# frozen_string_literal: true

require 'spec_helper'

describe 'sasori' do
  let(:node) { 'gateway.example.com' }
  let(:masters) do
    {
      'puppet2.example.com' => { 'address' => '10.0.0.2', 'port' => 8141, 'certname' => 'other.example.com' },
      'puppet1.example.com' => { 'address' => 'puppet1.example.com' },
    }
  end
  let(:params) do
    {
      puppetdb_url: 'https://puppetdb.example.com:8081',
      stats_password: RSpec::Puppet::Sensitive.new('secret'),
      masters: masters,
    }
  end

  def content(file)
    value = catalogue.resource('file', file)[:content]
    value.respond_to?(:unwrap) ? value.unwrap : value
  end

  systems.each do |system, facts|
    context "on #{system}" do
      let(:facts) { facts }

      it { is_expected.to compile.with_all_deps }

      it 'has the program before its settings, and those before the daemon' do
        is_expected.to contain_class('sasori::install').that_comes_before('Class[sasori::config]')
        is_expected.to contain_class('sasori::config').that_notifies('Class[sasori::service]')
        is_expected.to contain_package('haproxy').that_comes_before('Package[sasori]')
      end

      it 'numbers the masters by their names' do
        expect(content('/etc/sasori/gateway.env')).to include(
          %(MASTER1="puppet1.example.com:8140"\n), %(MASTER1_NAME="puppet1.example.com"\n),
          %(MASTER2="10.0.0.2:8141"\n), %(MASTER2_NAME="puppet2.example.com"\n), %(MASTER2_CERTNAME="other.example.com"\n)
        )
      end

      it 'restarts HAProxy for other variables of the gateway only' do
        is_expected.to contain_file('/etc/sasori/gateway.env').that_notifies('Service[haproxy]')
        is_expected.not_to contain_file('/etc/sasori/sasori.env').that_notifies('Service[haproxy]')
      end

      it 'uses the variable of its unit of HAProxy' do
        variable = facts[:os]['family'] == 'RedHat' ? 'OPTIONS' : 'EXTRAOPTS'
        expect(content('/etc/sasori/gateway.env')).to match(/^#{variable}="/)
      end

      it 'takes the certificate from the agent' do
        is_expected.to contain_file('/etc/sasori/ssl/key.pem').with(
          source: 'file:///etc/puppetlabs/puppet/ssl/private_keys/gateway.example.com.pem',
          owner: 'root', group: 'sasori', mode: '0640', show_diff: false
        )
      end
    end
  end

  context 'on Debian' do
    let(:facts) { systems.first.last }

    context "with Debian's own agent" do
      let(:facts) { super().merge(aio_agent_version: nil) }

      it { is_expected.to contain_file('/etc/sasori/ssl/ca.pem').with_source('file:///var/lib/puppet/ssl/certs/ca.pem') }
    end

    context 'with a package file' do
      let(:params) { super().merge(package_source: '/root/sasori.deb') }

      it { is_expected.to contain_package('sasori').with(ensure: 'latest', provider: 'dpkg', source: '/root/sasori.deb') }
    end

    context 'with a configuration of HAProxy that another module makes' do
      let(:params) do
        super().merge(gateway: false, manage_haproxy: false, stats_password: :undef, masters: {},
                      settings: { 'SASORI_HAPROXY' => '/run/haproxy/admin.sock' })
      end

      it { is_expected.to compile.with_all_deps }
      it { is_expected.not_to contain_package('haproxy') }
      it { is_expected.not_to contain_file('/etc/sasori/gateway.env') }
      it { expect(content('/etc/sasori/sasori.env')).to include(%(SASORI_HAPROXY="/run/haproxy/admin.sock"\n)) }
    end

    context 'with a service of HAProxy that another module has' do
      let(:params) { super().merge(manage_haproxy: false) }
      let(:pre_condition) { "service { 'haproxy': ensure => running }" }

      it { is_expected.to contain_file('/etc/sasori/gateway.env').that_notifies('Service[haproxy]') }
    end

    context 'with an API token' do
      let(:params) { super().merge(api_token: RSpec::Puppet::Sensitive.new('word')) }

      it { expect(content('/etc/sasori/api.token')).to eq("word\n") }
      it { expect(content('/etc/sasori/sasori.env')).to include(%(SASORI_API_TOKEN_FILE="/etc/sasori/api.token"\n)) }
    end

    context 'with values that a shell would take for more' do
      let(:params) { super().merge(gateway_settings: { 'STATS_USER' => '$(reboot) "`' }) }

      it { expect(content('/etc/sasori/gateway.env')).to include(%q(STATS_USER="\$(reboot) \"\`")) }
    end

    [
      [{ stats_password: :undef }, /stats_password/],
      [{ masters: {} }, /needs masters/],
      [{ settings: { 'LOG_LEVEL' => 'info' } }, /settings/],
      [{ masters: (1..33).to_h { |n| ["puppet#{n}", { 'address' => 'a' }] } }, /32 masters/],
      [{ puppetdb_url: 'puppetdb' }, /puppetdb_url/],
    ].each do |wrong, message|
      context "with #{wrong.keys.first} wrong" do
        let(:params) { super().merge(wrong) }

        it { is_expected.to compile.and_raise_error(message) }
      end
    end

    context 'absent' do
      let(:params) { super().merge(ensure: 'absent') }

      it { is_expected.to compile.with_all_deps }
      it { is_expected.to contain_package('sasori').with_ensure('purged') }
      it { is_expected.not_to contain_class('sasori::config') }
      it { is_expected.to contain_file('/var/lib/sasori').with_ensure('absent') }

      # HAProxy's own configuration may name the map.
      context 'without the gateway' do
        let(:params) { super().merge(gateway: false) }

        it { is_expected.to compile.with_all_deps }
        it { is_expected.to contain_file('/etc/sasori').with_ensure('absent') }
        it { is_expected.not_to contain_file('/var/lib/sasori') }
      end
    end
  end
end
