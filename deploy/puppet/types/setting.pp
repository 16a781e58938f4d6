# A variable of sasori (`sasori config --help` lists them) and its value.
type Sasori::Setting = Hash[Pattern[/\ASASORI_[A-Z_]+\z/], Variant[String[1], Integer, Boolean]]
