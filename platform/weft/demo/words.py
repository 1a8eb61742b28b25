"""Word lists for the demo's generated tasks. Knows nothing of the tasks or their splits."""

_WORDS = """
apple banana cherry lemon mango melon olive onion orange papaya peach pear plum grape guava
kiwi lime fig date berry bean beet bread butter cake candy carrot celery cheese chili clove
cocoa coffee corn cream curry egg flour garlic ginger herb honey jam juice kale leek maize
meat milk mint nut oat oil pasta pea pepper pie potato rice salad salt sauce soup spice sugar
tea toast tomato turnip water wheat yam yeast ant ape bat bear bee bird bison camel cat cow
crab crow deer dog donkey dove duck eagle eel elk emu falcon ferret fish fly fox frog gecko
goat goose gull hare hawk hen heron horse hyena iguana impala jackal jaguar kitten koala lamb
lion lizard llama lynx mole monkey moose moth mouse mule newt ocelot otter owl ox oyster
panda parrot pig pigeon pony puma quail rabbit rat raven robin salmon seal shark sheep shrimp
skunk sloth slug snail snake spider squid stork swan tiger toad trout tuna turkey turtle
viper vole walrus wasp weasel whale wolf worm yak zebra amber black blue bronze brown coral
gold green grey indigo ivory jade khaki lilac maroon mauve navy ochre pink purple red ruby
rust scarab silver tan teal violet white yellow anchor arrow axe bag ball barrel basket bell
belt bench bike blade boat bolt book boot bottle bowl box brick bridge broom brush bucket
bus button cabin cable camera candle canoe card cart castle chain chair chalk clock cloth
coat coin comb cup desk dish door drum dust engine fan fence flag flute fork frame gate glass
glove guitar hammer hat helmet hook house ink iron jacket jar jug kettle key kite knife
ladder lamp latch lens lock loom map mask mirror nail needle net oar organ oven paddle page
paint pan paper pen pencil piano pillow pin pipe plate pocket pot pump purse quilt radio rail
ribbon ring road rope rug ruler saddle sail saw scarf screw shelf ship shirt shoe sign silk
sink sofa spoon stamp stone stool stove string sword table tent thread ticket tile tool torch
towel tower toy train tray truck tube vase violin wagon wall watch weft wheel window wire
wood wool yarn zipper autumn beach brook cave cliff cloud coast dawn desert dusk earth field
fire flame flood flower fog forest frost garden grass hail hill ice island jungle lake leaf
light marsh meadow moon mud night ocean pebble planet plant pond rain reef river rock root
sand sea seed shade shore sky snow soil spring star storm stream summer sun thorn tide tree
tundra valley vine wave wind winter zenith
"""

_NAMES = """
Ada Alan Alice Amir Ann Anna Ben Bella Boris Carl Clara Dana Dario David Dora Ed Ella Emil
Erik Eva Felix Fiona Frank Grace Greta Hana Hugo Ida Igor Ines Ivan Jack Jana Jon Julia Kai
Karl Kim Kofi Lars Lea Leo Lena Lina Luis Maria Mark Maya Mia Milan Mina Nadia Nils Nina Nora
Olga Oscar Otto Paul Petra Raj Rita Robin Rosa Sam Sara Sofia Sven Tara Theo Tina Tom Uma
Vera Viktor Wanda Yara Yuki Zoe
"""

_CITIES = """
Accra Athens Basel Berlin Bergen Bogota Boston Cairo Chennai Cork Cusco Dakar Delhi Denver
Dublin Fez Geneva Genoa Ghent Hanoi Havana Kiel Kyoto Lagos Leeds Lima Lisbon London Lyon
Madrid Malmo Manila Miami Milan Minsk Mumbai Munich Nairobi Naples Nice Odessa Oslo Oulu
Osaka Paris Perth Porto Prague Pune Quito Riga Rome Seoul Sofia Sydney Tokyo Tunis Turin
Vienna Warsaw York Zagreb Zurich
"""

WORDS: tuple[str, ...] = tuple(_WORDS.split())
NAMES: tuple[str, ...] = tuple(_NAMES.split())
CITIES: tuple[str, ...] = tuple(_CITIES.split())
