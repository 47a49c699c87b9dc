"""Tables behind Chinese typing errors: characters that sound alike and characters that look alike.

Pinyin input picks a wrong character of the same syllable; handwriting and recognition pick a similar shape.
Source of `SOUNDS`: toneless Mandarin readings of the 2,400 characters that are commonest in news and reviews, grouped
by syllable, the commonest first (readings as in Unicode's Unihan, field kMandarin). Simplified characters only.
"""

from __future__ import annotations

import functools

SOUNDS = """
a:阿啊 ai:爱埃艾癌哀碍哎 an:安案按岸暗鞍 ao:奥澳傲 ba:巴把八吧拔霸爸罢坝跋 bai:百白败摆柏拜
ban:办半版般班板伴拌斑颁搬扮 bang:帮邦棒榜 bao:报保包宝暴爆堡胞饱薄抱鲍 bei:北被备杯背贝倍辈碑悲 ben:本奔
bi:比必币毕笔避闭彼壁逼鼻碧弊 bian:变边便编遍贬辩扁辨 biao:表标 bin:宾滨斌濒彬 bing:并病饼兵冰丙
bo:波博播伯勃拨卜玻搏剥 bu:不部布步补捕怖哺 cai:菜才采财材彩裁蔡 can:餐参残惨 cang:藏仓苍 cao:草操曹槽 ce:策测侧册
ceng:曾层 cha:差查察茶叉插 chai:柴拆 chan:产阐禅 chang:场常厂昌唱偿倡尝肠畅 chao:超朝潮炒抄钞巢 che:车彻撤
chen:陈沉臣晨尘琛辰 cheng:成程城称承呈诚乘撑惩 chi:吃持齿迟赤尺池翅斥驰 chong:充冲虫崇宠 chou:筹抽臭
chu:出处初除础储触楚畜厨 chuan:传川船穿串 chuang:创窗床闯 chui:垂吹椎 chun:春纯醇 ci:次此词辞刺磁雌茨慈瓷
cong:从葱丛聪匆 cu:促粗醋 cui:催脆翠粹崔 cun:村存邨寸 cuo:错措磋挫 da:大达打答搭哒 dai:代带待贷袋戴逮呆
dan:但单担蛋丹淡弹旦诞胆 dang:当党荡档 dao:到道导岛倒刀盗稻蹈悼 de:的得德 deng:等邓登灯
di:地第低底递迪帝弟抵敌蒂笛滴缔 dian:点电店典殿淀甸奠 diao:调掉鲷雕钓吊 die:跌蝶 ding:定订丁顶鼎 dong:动东董洞冬懂冻栋
dou:都豆斗 du:度读毒独督杜渡肚堵赌睹 duan:段断短端锻 dui:对队兑堆 dun:顿盾吨敦 duo:多夺朵 e:俄额恶饿厄鄂 er:而尔二儿耳
fa:发法罚乏伐阀 fan:饭反范泛犯繁翻番返凡贩烦帆藩 fang:方放防访房芳纺坊仿 fei:非费飞肥菲废啡肺妃 fen:分份纷奋粉芬氛愤
feng:风丰封峰锋奉凤冯逢缝 fu:府服复夫富副负福附父幅付妇佛腐傅扶符腹辐赴弗辅浮覆伏赋肤抚氟孚俘 gai:改该盖概
gan:干感赶敢甘肝杆赣 gang:港岗刚钢纲冈肛 gao:高告搞稿糕 ge:个各格革哥歌阁隔戈割葛 gen:根跟 geng:更耕
gong:工公共供功攻贡宫巩弓恭龚 gou:构购够沟钩狗 gu:股古故骨顾固鼓谷估菇孤姑雇 gua:瓜挂 guan:关管观官馆冠贯惯灌
guang:广光 gui:规贵归轨桂柜龟鬼圭 guo:国过果锅郭 hai:还海孩害 han:汉韩含翰寒汗旱函涵憾罕喊 hang:航杭 hao:好号浩豪毫耗
he:和合河核何盒喝荷赫呵贺颌褐鹤 hen:很痕 heng:恒横衡亨 hong:红宏洪虹鸿弘轰 hou:后候厚侯 hu:护户湖互乎呼胡虎糊忽瑚沪
hua:化华话划花画滑 huai:怀坏淮 huan:环欢换患缓幻唤 huang:黄皇荒煌凰 hui:会回汇挥惠恢辉灰毁慧绘徽贿 hun:混婚魂昏
huo:活或获货火伙霍惑 ji:及机济技基计际集记几级纪己极积继即季鸡击吉绩既激急疾迹辑籍圾剂棘肌寄挤脊稽矶祭暨
jia:家加价假佳甲嘉架茄夹贾驾嫁 jian:建间见件减坚监健检简践兼渐键艰煎尖荐箭鉴剑肩舰碱剪 jiang:将江讲奖降酱疆浆蒋姜僵
jiao:教交较角叫椒脚礁胶焦饺郊缴骄 jie:界结解接节届介街阶杰借洁揭截姐捷皆戒劫 jin:进金今近仅尽紧禁锦津劲斤晋谨巾浸筋
jing:经京精境净警景竞竟径静敬惊镜井晶睛靖颈荆 jiu:就究九久酒救旧纠 ju:局举据具居剧巨距聚句俱拒菊锯 juan:卷捐
jue:决觉绝爵掘 jun:军均郡君菌俊峻 ka:卡咖喀 kai:开凯慨 kan:看刊堪勘坎 kang:康抗 kao:考靠烤 ke:可科克客刻课颗壳柯渴恪
kong:空控恐孔 kou:口扣 ku:苦库哭酷 kua:跨夸 kuai:快块筷 kuan:款宽 kuang:况矿框狂 kui:亏葵 kun:困昆 kuo:括扩阔
la:拉辣垃啦腊喇 lai:来莱赖 lan:兰蓝览篮烂栏滥岚揽 lang:朗浪郎狼廊 lao:老劳牢 le:了乐 lei:类雷勒累泪垒蕾
li:理利力里立历李离例丽礼黎励厘厉粒梨锂璃隶鲤莉狸 lian:联连练廉莲炼脸恋怜链 liang:两量凉良梁粮亮辆 liao:料疗辽廖
lie:列烈裂猎劣鬣 lin:林临邻鳞琳磷 ling:领令另灵零龄陵岭凌玲 liu:流六留刘柳瘤琉硫 long:龙隆垄笼 lou:楼漏
lu:路陆录鲁露卢鹿鲈炉卤 luan:乱卵 lun:论轮伦仑 luo:罗落洛络锣萝逻 lv:率律旅绿虑履吕氯铝屡侣榈 ma:马吗麻码妈玛嘛
mai:卖买麦迈脉埋 man:慢满曼漫鳗蛮 mang:忙盲芒 mao:贸毛矛猫冒貌茂茅帽 mei:美没每媒枚梅煤妹眉魅 men:们门闷
meng:盟蒙梦猛孟 mi:米密秘迷蜜弥 mian:面免棉缅绵勉 miao:庙描苗秒妙 min:民敏 ming:名明命鸣铭
mo:模墨莫末摩默膜魔漠磨摸蘑馍 mou:某谋 mu:目母木幕姆牧亩穆募墓慕睦 na:那哪纳拿娜 nai:奶乃奈耐 nan:南难男 nao:脑闹
ni:拟尼你泥腻逆 nian:年念 ning:宁凝 niu:牛纽扭 nong:农弄浓 nu:努奴怒 nuo:诺挪 ou:欧偶 pa:怕帕爬 pai:牌派排拍
pan:判盘潘攀叛盼 pang:旁庞乓 pao:跑泡炮抛 pei:配培佩赔陪 pen:盆喷 peng:朋彭鹏碰棚膨蓬篷硼 pi:批皮披辟匹疲啤
pian:片篇偏骗 piao:票飘漂 pin:品贫频拼聘 ping:平评凭瓶屏乒坪萍 po:破坡迫颇泊婆泼 pu:普浦葡谱朴铺埔扑
qi:其起期企气器汽奇七鳍启旗齐骑棋栖弃妻歧欺迄契戚崎 qia:恰洽 qian:前钱千签潜迁欠牵浅歉遣谴谦乾 qiang:强抢枪墙腔
qiao:桥乔巧侨悄敲 qie:且切窃 qin:亲勤侵秦钦琴 qing:情青清请轻庆晴倾顷卿氢 qiong:穷琼 qiu:球求秋丘
qu:区去取曲趋趣渠屈驱 quan:全权券泉圈拳劝 que:确却缺雀 ran:然染燃 rang:让壤 rao:绕扰 ren:人任认仁忍 reng:仍扔
rong:融容荣溶绒 rou:肉柔 ru:入如乳儒 rui:瑞锐 ruo:若弱 sa:萨撒洒 sai:赛塞鳃 san:三散 sang:桑丧 sao:扫骚 se:色瑟
sha:沙杀厦啥砂莎傻 shan:山善陕杉珊闪扇 shang:上商尚伤赏 shao:少绍烧稍勺邵哨 she:社设射蛇涉摄舍舌奢
shen:什深身神审甚申沈伸慎渗 sheng:生省声胜升盛圣剩绳牲
shi:是时市实事世十使式士视史示识施师食失始石势试适室似氏诗释饰逝湿狮驶誓拾矢 shou:收受手首售授守兽寿瘦
shu:术书数属树述束署熟输殊蔬舒叔薯疏蜀鼠 shuai:帅衰 shuang:双爽 shui:水税谁睡 shuo:说硕 si:斯司四思死丝私寺饲
song:送松宋讼 sou:搜艘 su:速素苏诉俗塑肃宿 suan:算酸蒜 sui:随岁虽碎遂隧 sun:损孙 suo:所索缩锁 ta:他她它塔牠踏塌
tai:太台态泰胎汰抬 tan:谈探坦坛滩摊碳叹贪炭谭 tang:汤堂唐糖塘烫棠 tao:讨套涛陶逃淘桃萄 teng:腾藤滕疼 ti:体提题替踢梯蹄
tian:天田甜添填 tiao:条挑跳 tie:铁贴 ting:停挺厅听庭廷町亭艇 tong:同通统童痛铜桶 tou:头投透偷 tu:图土突途徒吐涂屠兔
tui:推退腿 tun:臀屯吞 tuo:托脱拓拖坨妥 wa:瓦挖娃 wan:万完晚湾玩碗丸弯顽挽 wang:王望往网亡忘旺
wei:为位味委维未卫威围危微伟尾违唯谓韦魏慰胃伪蔚尉 wen:文问稳闻温纹吻 wo:我握沃窝
wu:务物无五武午吴污伍舞乌误屋晤雾鹉吾 xi:西系息习席希喜细吸戏析悉洗惜袭锡稀夕溪熙昔 xia:下夏峡辖霞虾侠狭
xian:现线先县险显限献鲜咸陷仙贤宪嫌闲纤弦馅 xiang:向相项香想响象乡像享箱祥翔湘详橡巷 xiao:小校效消销笑晓孝萧肖
xie:些协写谢胁械斜懈鞋携歇卸 xin:新心信辛欣鑫芯薪 xing:行性形星兴型幸姓刑醒 xiong:雄胸兄熊匈 xiu:修秀休袖
xu:续许需须序徐吁虚绪蓄叙旭 xuan:选宣旋悬璇 xue:学血雪穴削薛 xun:讯训寻迅询循旬勋巡逊 ya:亚压牙雅鸭呀押涯崖芽
yan:研严验演言眼延沿岩烟盐颜炎燕彦衍宴咽艳掩 yang:样央阳养洋扬杨羊氧仰 yao:要药邀摇遥咬耀腰姚窑
ye:业也叶野夜液耶页爷冶 yi:一以意已议亿义易医艺益依伊亦移异疑遗宜仪衣役乙译谊翼毅夷疫裔忆逸溢抑 yin:因印银引音阴饮隐姻
ying:应影英营硬迎映赢盈鹦鹰颖婴 yong:用永拥勇涌泳庸雍 you:有由又油友游优右尤幼犹忧邮悠幽诱
yu:于与育预鱼语雨域余予遇宇誉玉羽舆逾娱欲渔御裕豫狱郁愈喻愉屿浴 yuan:员元原院源远园愿圆缘援袁怨苑 yue:月约越跃阅粤岳悦
yun:运云允韵孕蕴晕 za:杂咋 zai:在再灾载仔栽 zan:赞暂 zang:脏葬 zao:造早遭糟藻 ze:则责泽择 zeng:增赠 zha:扎炸渣
zhai:债宅寨窄摘 zhan:展战站占粘 zhang:长张章掌障账丈涨彰胀帐 zhao:照找招召赵兆沼昭肇 zhe:这者着折浙哲遮
zhen:真镇阵针震振珍圳诊侦贞 zheng:政正证争整征郑症蒸挣
zhi:之制至只治知质职指直支志织致值止置执智纸植址殖汁芝旨雉枝秩帜肢稚脂滞 zhong:中重种众终钟忠衷仲肿
zhou:州洲周粥肘舟宙骤轴 zhu:主助注著住筑逐朱驻珠猪诸祝柱竹煮株瞩竺蛛 zhuan:转专赚撰 zhuang:装状庄壮撞 zhuo:卓桌捉
zi:子自资字滋紫兹咨姿 zong:总宗综纵棕踪 zou:走奏邹 zu:组足族祖租阻 zui:最罪嘴醉 zun:尊遵 zuo:作做座左坐昨佐
"""

SHAPES = """
己已巳 未末 土士 人入八 大太犬 日曰目 天夫无 干千于 王玉主 木本术 贝见 鸟乌 刀力 甲由申 免兔 拔拨 辨辩辫 候侯
晴睛 析折拆 很狠恨 代伐 住往 侍待 幕墓暮慕 戊戌戍 买卖 今令 治冶 坐座 渴喝 拍柏 历厉 外处 问间 末来 账帐 拦栏
抱饱 场汤 经径 历力 找我 牛午 几九 白自 名各 右石 古舌 左在 开井 车东 万方 处外 准淮 凉谅 幻幼 即既 孤弧 博搏
壁璧 采彩 磨摩 辉挥 偏遍编 慢漫 消销 检捡俭 脑恼 陪培 拣炼 蓝篮 燥躁噪 竞竟 崇祟 坏环 竖坚 仓仑 乒乓 兵乓
"""


@functools.cache
def alike() -> tuple[dict[str, str], dict[str, str]]:
    """(character -> others that sound like it, character -> others that look like it)."""
    sounds: dict[str, str] = {}
    for group in SOUNDS.split():
        characters = group.partition(":")[2]
        for character in characters:
            sounds[character] = characters.replace(character, "")
    shapes: dict[str, str] = {}
    for characters in SHAPES.split():
        for character in characters:
            shapes[character] = shapes.get(character, "") + characters.replace(character, "")
    return sounds, shapes
