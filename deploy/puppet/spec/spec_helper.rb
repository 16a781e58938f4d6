# frozen_string_literal: true

# The modules that this one needs come from where Debian or `puppet module install` puts them; this folder is "sasori" there.
require 'fileutils'
require 'tmpdir'
require 'json'
require 'rspec-puppet'

MODULES = Dir.mktmpdir
at_exit { FileUtils.remove_entry(MODULES) }
File.symlink(File.expand_path('..', __dir__), File.join(MODULES, 'sasori'))

RSpec.configure do |config|
  others = ENV.fetch('SASORI_SPEC_MODULES', '/usr/share/puppet/modules')
  config.module_path = [MODULES, others].join(':')
  config.strict_variables = true
  config.setup_fixtures = false
end

# Facts of each system of metadata.json, with an agent of Puppet's own packages (AIO). README.md says where it was tried for real.
def systems
  metadata = JSON.parse(File.read(File.join(__dir__, '../metadata.json')))
  metadata['operatingsystem_support'].flat_map do |system|
    name = system['operatingsystem']
    family = %w[Debian Ubuntu].include?(name) ? 'Debian' : 'RedHat'
    system['operatingsystemrelease'].map do |release|
      os = { 'name' => name, 'family' => family, 'release' => { 'major' => release, 'full' => release } }
      ["#{name} #{release}", { os: os, aio_agent_version: '8.10.0', kernel: 'Linux' }]
    end
  end
end
